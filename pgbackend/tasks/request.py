"""Which request the running context works for, and the wrappers that it has on the loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

# By alias, the wrappers that the request of this context has on the loop; see `request_wrappers`.
of_request: ContextVar[dict[str, Any]] = ContextVar("pgbackend_request_wrappers")


@contextmanager
def serving_with(wrappers: dict[str, Any]) -> Iterator[None]:
    """Serve a request in the block whose *wrappers*, by alias, are these."""
    token = of_request.set(wrappers)
    try:
        yield
    finally:
        of_request.reset(token)


def request_wrappers() -> list[Any]:
    """Return the wrappers that the request has on the loop, to its threads too; [] without one."""
    return list(of_request.get({}).values())


def request_wrapper(alias: str) -> Any:
    """Return the loop's wrapper of *alias* for the request, also in its threads; None without."""
    return of_request.get({}).get(alias)


def running_request() -> object:
    """Return what stands for the request of this context, its tasks and threads; None without."""
    return of_request.get(None)
