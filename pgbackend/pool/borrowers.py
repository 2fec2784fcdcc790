"""Who has a connection on loan, or waits for one: the task, its request, and for how long."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from operator import itemgetter
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .physical import PooledConnection

# How many borrowers an error message names.
_NAMES = 5

# The ASGI scope of the request that this context works for, or None.
of_request: ContextVar[Any] = ContextVar("pgbackend_request_scope", default=None)


@dataclass(frozen=True)
class Loan:
    """A connection on loan, or a wait for one."""

    task: str
    # Method and path of the request that the task works for; "" for none.
    request: str
    seconds: float
    # The process id of the server's; 0 for a wait, and for a connection that is closed.
    pid: int = 0


def loans(connections: Iterable[PooledConnection]) -> list[Loan]:
    """Return the connections on loan, those first that have been so the longest."""
    now = monotonic()
    found = [
        Loan(
            conn.borrower.get_name(),
            request_of(conn.lent_for),
            now - conn.lent_at,
            0 if conn.closed else conn.pgconn.backend_pid,
        )
        for conn in connections
        if conn.borrower is not None
    ]
    return sorted(found, key=lambda loan: -loan.seconds)


def describe(connections: Iterable[PooledConnection]) -> str:
    """Name the borrowers, those first that have had their connection the longest.

    A request is named by method and path. Its query string may have secrets.
    """
    on_loan = sorted(
        (
            (conn.lent_at, conn.borrower.get_name(), conn.lent_for)
            for conn in connections
            if conn.borrower is not None
        ),
        key=itemgetter(0),
    )
    now = monotonic()
    words = [
        f"{name} ({request_of(scope, ', ')}for {now - since:.1f} s)"
        for since, name, scope in on_loan[:_NAMES]
    ]
    return ", ".join([*words, "..."] if len(on_loan) > _NAMES else words)


def request_of(scope: Any, end: str = "") -> str:
    """Return method and path of a request, and *end*; "" for None."""
    if scope is None:
        return ""
    # A WebSocket has no method.
    return f"{scope.get('method') or scope.get('type')} {scope.get('path')}{end}"
