"""The request that the running context works for, and its wrappers on the event loop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

# The wrappers, by alias, that this context's request has on the loop; see `request_wrappers`.
of_request: ContextVar[dict[str, Any]] = ContextVar("pgbackend_request_wrappers")


@contextmanager
def serving_with(wrappers: dict[str, Any]) -> Iterator[None]:
    """Use these *wrappers*, by alias, for the request that the block serves."""
    token = of_request.set(wrappers)
    try:
        yield
    finally:
        of_request.reset(token)


def request_wrappers() -> list[Any]:
    """Return the request's wrappers on the loop, also in its threads; [] without a request."""
    return list(of_request.get({}).values())


def request_wrapper(alias: str) -> Any:
    """Return the request's wrapper on the loop for *alias*, also in its threads, or None."""
    return of_request.get({}).get(alias)


def running_request() -> object:
    """Return an object that identifies this context's request in its tasks and threads, or None."""
    return of_request.get(None)
