"""What the figures should be.

The milliseconds were set where Celery's own round trip takes 1.5. The ratios to it say the same
of a machine on which all of that takes longer.
"""

from tests.benchmarks.targets import Least, Limit, Target
from tests.benchmarks_rpc.peers import OURS, POSTGRES
from tests.benchmarks_rpc.works import GATHERED, THREAD

ALL: list[Target] = [
    Limit(
        "one read, above Celery's own round trip, ms",
        THREAD.name,
        OURS,
        "above",
        1.0,
        factor=1e3,
        digits=2,
    ),
    Limit("one read by postgres, ms", THREAD.name, POSTGRES, "p50", 3.0, factor=1e3, digits=2),
    Limit(
        "one read, times Celery's own round trip", THREAD.name, OURS, "of_celery", 1.67, digits=2
    ),
    Limit(
        "one read by postgres, times Celery's own round trip",
        THREAD.name,
        POSTGRES,
        "of_celery",
        2.0,
        digits=2,
    ),
    *(
        Least(f"{name}: 100 gathered reads, times as fast", GATHERED.name, name, "speedup", 20)
        for name in (OURS, POSTGRES)
    ),
]
