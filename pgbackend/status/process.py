"""The part of a snapshot that this process knows by itself, without asking a server."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from time import monotonic
from typing import Any

from ..findings import latest
from ..pool.borrowers import Loan
from ..pool.open_pools import open_pools, pools_of_loops
from ..statistics import PoolStatistics, pools, pools_by_alias, sums_by_alias

# How many connections on loan, and how many waiting tasks, are named for each alias.
_NAMED = 20

_SIZES = ("size", "idle", "on_loan", "resetting", "max_size", "waiting")

_COUNTS = (
    "short",
    "cursor",
    "thread",
    "borrowed",
    "queued",
    "wait_ms",
    "timeouts",
    "connects",
    "connect_errors",
    "discarded",
    "cancelled",
)


def process_part(aliases: Iterable[str]) -> dict[str, Any]:
    """Return what this process does, and has done, for each of *aliases*; on a loop.

    Sizes and counts are those of all its event loops and threads, loans those of the running loop.
    """
    open_now, counted = pools_by_alias(), sums_by_alias()
    # Nothing of aliases that were configured once, as those of tenants may have been.
    shown = {*aliases, *(pool.alias for _, pool in pools_of_loops())}
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        # The page makes rates of it.
        "clock": monotonic(),
        "aliases": {
            alias: _of_alias(alias, open_now.get(alias, []), counted.get(alias, Counter()))
            for alias in sorted(shown)
        },
        "findings": [asdict(each) for each in latest()],
    }


def some_wait() -> bool:
    """Return whether tasks wait for a connection."""
    return any(each.waiting for each in pools())


def _of_alias(alias: str, open_now: list[PoolStatistics], counted: Counter[str]) -> dict[str, Any]:
    sizes: Counter[str] = Counter(dict.fromkeys(_SIZES, 0))
    for each in open_now:
        sizes.update({name: getattr(each, name) for name in _SIZES})
    here = open_pools(alias)
    return {
        **sizes,
        **{name: counted[name] for name in _COUNTS},
        "loans": _named(loan for pool in here for loan in pool.loans()),
        "waits": _named(loan for pool in here for loan in pool.waits()),
    }


def _named(loans: Iterable[Loan]) -> list[dict[str, Any]]:
    longest = sorted(loans, key=lambda loan: -loan.seconds)
    return [asdict(loan) for loan in longest[:_NAMED]]
