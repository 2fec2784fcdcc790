"""What the figures should be."""

from tests.benchmarks.targets import Cost, Least, Limit, Ratio, Target
from tests.benchmarks_pubsub.peers import OURS, RAW
from tests.benchmarks_pubsub.works import BESIDE, DRAINS, PLAIN, STORED, TRIGGER

_SECONDS = "seconds_per_row"
_SMALL, _LARGE, _LARGEST = (DRAINS[rows].name for rows in (10_000, 100_000, 1_000_000))

ALL: list[Target] = [
    Cost(f"{PLAIN.name}, p50", "p50", PLAIN.name, PLAIN.name, RAW, 1.5),
    *(
        Limit(f"{work.name}, {figure}, ms", work.name, OURS, figure, at_most, factor=1e3, digits=2)
        for work in (STORED, TRIGGER)
        for figure, at_most in (("p50", 1.5), ("p99", 6.0))
    ),
    Least(f"{_SMALL}, rows a second", _SMALL, OURS, "rps", 15_000),
    *(
        Ratio(_SMALL, peer, 20)
        for peer in ("django-pgpubsub", "procrastinate", "pgqueuer", "django-tasks-db")
    ),
    Cost("time for a row, of 100,000 against 10,000", _SECONDS, _LARGE, _SMALL, OURS, 1.1),
    Cost("time for a row, of 1,000,000 against 10,000", _SECONDS, _LARGEST, _SMALL, OURS, 1.1),
    Cost(
        "time for a row of 100,000, beside a long transaction",
        _SECONDS,
        BESIDE.name,
        _LARGE,
        OURS,
        1.5,
    ),
]
