"""Who has a connection on loan: the task, its request, and for how long."""

from __future__ import annotations

from collections.abc import Iterable
from contextvars import ContextVar
from operator import itemgetter
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .physical import PooledConnection

# How many borrowers an error message names.
_NAMES = 5

# The ASGI scope of the request that this context works for, or None.
of_request: ContextVar[Any] = ContextVar("pgbackend_request_scope", default=None)


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
        f"{name} ({_request(scope)}for {now - since:.1f} s)"
        for since, name, scope in on_loan[:_NAMES]
    ]
    return ", ".join([*words, "..."] if len(on_loan) > _NAMES else words)


def _request(scope: Any) -> str:
    if scope is None:
        return ""
    # A WebSocket has no method.
    return f"{scope.get('method') or scope.get('type')} {scope.get('path')}, "
