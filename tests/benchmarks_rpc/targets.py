"""What the figures should be."""

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
    *(
        Least(f"{name}: 100 gathered reads, times as fast", GATHERED.name, name, "speedup", 20)
        for name in (OURS, POSTGRES)
    ),
]
