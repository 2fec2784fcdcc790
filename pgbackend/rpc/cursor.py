"""What ``connections["rpc"].cursor()`` returns: several calls in one message."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.db import NotSupportedError

from .protocol.errors import NotRun
from .results import RpcFuture


class RpcCursor:
    """Sends calls together. It needs no closing."""

    def __init__(self, wrapper: Any) -> None:
        self.db = wrapper

    def __enter__(self) -> RpcCursor:
        return self

    def __exit__(self, *_details: object) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def close(self) -> None:
        """Do nothing: there is nothing open."""

    def gather(
        self,
        *calls: Any,
        atomic: bool = False,
        dry: bool = False,
        timeout: float | None = None,
        return_exceptions: bool = False,
        idempotency: str | None = None,
    ) -> list[Any]:
        """Send *calls* as one message; return their results in order.

        Calls are futures, and querysets, whose results are lists. Those that were sent already are
        waited for. With *atomic* the service runs all of them in one transaction or none; with
        *dry* it rolls back what it has run. *timeout* is in seconds, until the message's deadline.
        The same *idempotency* names the same writes when they are sent again, by new futures: what
        was done then gives its stored answer. Raise the first call's error, unless
        *return_exceptions*.
        """
        futures = self._sent(calls, atomic=atomic, dry=dry, within=timeout, idempotency=idempotency)
        for each in futures:
            each.exception()
        return _results(futures, return_exceptions)

    async def agather(
        self,
        *calls: Any,
        atomic: bool = False,
        dry: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109  # the message's deadline
        return_exceptions: bool = False,
        idempotency: str | None = None,
    ) -> list[Any]:
        """Do what `gather` does."""
        futures = self._sent(calls, atomic=atomic, dry=dry, within=timeout, idempotency=idempotency)
        for each in futures:
            if not each.done():
                await each.wait()
        return _results(futures, return_exceptions)

    def _sent(self, calls: Any, **options: Any) -> list[RpcFuture[Any]]:
        futures = [each if isinstance(each, RpcFuture) else _rows_of(each) for each in calls]
        for each in futures:
            # A future whose result was known at once has no alias.
            if not each.done() and each.database != self.db.alias:
                raise ValueError(
                    f"a call of {each.database!r} cannot be in a message to {self.db.alias!r}: a"
                    " message goes to one service"
                )
        claimed = [each for each in futures if not each.done() and each.claim() is not None]
        if claimed:
            self.db.send(claimed, **options)
        return futures

    def execute(self, *_args: Any, **_options: Any) -> Any:
        """Raise NotSupportedError: a service takes no SQL."""
        raise NotSupportedError(
            "a service takes no SQL: use the querysets of an RpcModel, gather(...), or a method of"
            " the service's manager: objects.call(...)"
        )

    executemany = callproc = execute


def _results(futures: list[RpcFuture[Any]], return_exceptions: bool) -> list[Any]:
    """Return the results of futures that have ended, or raise the error that ended the message."""
    errors = [each.exception() for each in futures]
    if return_exceptions:
        pairs = zip(futures, errors, strict=True)
        return [each.result() if error is None else error for each, error in pairs]
    # Of an atomic message the others were not run because of one.
    causes = [each for each in errors if each is not None and not isinstance(each, NotRun)]
    if causes:
        raise causes[0]
    return [each.result() for each in futures]


def _rows_of(queryset: Any) -> RpcFuture[Any]:
    rows = getattr(queryset, "rows_future", None)
    if rows is None:
        raise TypeError(
            "gather() takes futures and querysets of an RpcModel, not"
            f" {type(queryset).__qualname__}"
        )
    found: RpcFuture[Any] = rows()
    return found
