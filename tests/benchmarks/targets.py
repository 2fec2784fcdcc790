"""What the figures should be, by ratios within one run."""

from collections.abc import Iterator
from dataclasses import dataclass

from tests.benchmarks.peers import OURS
from tests.benchmarks.works import TARGETS

# Stock Django is compared with as it is fastest.
STOCK = "django+pool"
PACKAGE = "django-async-backend"
SQLALCHEMY = ("sqlalchemy+psycopg", "sqlalchemy+asyncpg")

_KINDS = ("1 get", "1 get, 500 at once", "5 gets", "5 lists of 20", "5 updates")


@dataclass(frozen=True)
class Ratio:
    """Requests per second, ours divided by another's: at least so much."""

    work: str
    peer: str
    at_least: float


@dataclass(frozen=True)
class Cost:
    """A figure of ours divided by one of another work or peer: at most so much."""

    words: str
    figure: str
    work: str
    other_work: str
    other_peer: str
    at_most: float


@dataclass(frozen=True)
class Limit:
    """A figure of one of our ways of use: at most so much; *less* is subtracted first."""

    words: str
    work: str
    peer: str
    figure: str
    at_most: float
    less: str = ""
    factor: float = 1.0
    # Of the figure, after the point.
    digits: int = 0


@dataclass(frozen=True)
class Least:
    """A figure of one of our ways of use: at least so much."""

    words: str
    work: str
    peer: str
    figure: str
    at_least: float
    digits: int = 0


Target = Ratio | Cost | Limit | Least


def _ratios(peer: str, *wanted: tuple[str, float]) -> Iterator[Ratio]:
    for work, at_least in wanted:
        yield Ratio(work, peer, at_least)


_WAITING = "1,000 waiting for 100 ms"
_POOL = next(work.pool for work in TARGETS if work.name == _WAITING)
_BRIDGED = "pgbackend, bridged request"

ALL: list[Target] = [
    *_ratios(STOCK, *zip(_KINDS, (4.0, 3.8, 2.6, 2.5, 3.0), strict=True)),
    *_ratios(PACKAGE, *((kind, 1.2) for kind in _KINDS)),
    *(Ratio(kind, peer, 1.4) for peer in SQLALCHEMY for kind in _KINDS),
    *_ratios("tortoise", *((kind, 0.7 if "500" in kind else 0.85) for kind in _KINDS)),
    Cost(
        "CPU per query, `aget` against synchronous `get`",
        "cpu_per_query",
        "gets in one task",
        "gets in one task",
        "django-sync",
        1.0,
    ),
    Cost(
        "10 gathered queries of 20 ms against one, time",
        "p50",
        "10 queries of 20 ms, gathered",
        "1 query of 20 ms",
        OURS,
        1.15,
    ),
    *(
        Ratio(f"HTTP, JSON, {queries}", peer, at_least)
        for peer, limits in ((STOCK, (3.0, 2.5, 2.0)), (PACKAGE, (3.0, 1.8, 1.2)))
        for queries, at_least in zip(("1 query", "5 queries", "20 queries"), limits, strict=True)
    ),
    Ratio("HTTP, synchronous view, 5 queries", STOCK, 2.0),
    *(
        Cost(
            f"HTTP, JSON, {queries}, CPU against synchronous views",
            "cpu_per_query",
            f"HTTP, JSON, {queries}",
            f"HTTP, JSON, {queries}",
            f"gunicorn, {threads} threads",
            1 / at_least,
        )
        for threads, limits in ((20, (1.6, 2.0, 2.5)), (2, (1.5, 1.7, 2.0)))
        for queries, at_least in zip(("1 query", "5 queries", "20 queries"), limits, strict=True)
    ),
    Limit("threads of 1,000 waiting requests", _WAITING, _BRIDGED, "threads", 1),
    Limit("their memory, MB", _WAITING, _BRIDGED, "memory_peak", 50, "memory_before", factor=1e-6),
    Limit("their server connections", _WAITING, _BRIDGED, "connections", _POOL),
]
