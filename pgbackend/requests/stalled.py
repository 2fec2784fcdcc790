"""Clients that do not read their response, and the connections on loan meanwhile.

A server makes ``send()`` wait while its client reads nothing. A response that streams rows has a
connection on loan then, and a few such clients could hold all of them. So the wait is limited by
``PGBACKEND_CLIENT_TIMEOUT``; without a connection on loan it is not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import Context
from typing import Any

from django.db import connections

from .. import conf
from ..wrapper.attributes import BackendWrapper

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]

# How often a client that reads nothing is checked within its time limit, or within a second.
_CHECKS = 5


class ClientStalledError(OSError):
    """The client has read nothing for too long, while a connection was on loan for it.

    An OSError, since in ASGI ``send()`` raises OSError when a client has gone. Source:
    https://asgi.readthedocs.io/en/latest/specs/www.html
    """


@contextmanager
def limited_send(send: Send, *, streaming: bool = True) -> Iterator[Send]:
    """Give the block a ``send()`` that raises `ClientStalledError` after too long a wait.

    The limit applies while wrappers of the running context have connections on loan. Unless the
    response is *streaming*, no other connection will be borrowed.
    """
    seconds = conf.client_timeout()
    wrappers = _wrappers()
    if seconds is None or not (streaming or any(each.leases() for each in wrappers)):
        yield send
        return
    bound = _LimitedSend(send, seconds, wrappers)
    try:
        yield bound
    finally:
        bound.end()


def give_back_leases() -> None:
    """Give back the leases of tasks of a request that has ended, except those in transactions.

    A producer of rows that waits for its sender gets an error when it goes on.
    """
    for wrapper in _wrappers():
        for lease in wrapper.leases():
            if lease.state.transaction is None:
                lease.dirty = True
                lease.give_back()


def _wrappers() -> list[BackendWrapper]:
    return [each for each in connections.all() if isinstance(each, BackendWrapper)]


class _LimitedSend:
    """A ``send()`` whose waits are checked now and then."""

    def __init__(self, send: Send, seconds: float, wrappers: list[BackendWrapper]) -> None:
        self._send = send
        self._seconds = seconds
        self._wrappers = wrappers
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        # The scope that can end the current wait, if there is one, and the start of the wait.
        self._scope: asyncio.Timeout | None = None
        self._since = 0.0

    async def __call__(self, message: Message) -> None:
        """Send *message*, as the server does."""
        self._since = self._loop.time()
        if self._timer is None:
            self._check_later(self._seconds)
        try:
            async with asyncio.timeout(None) as scope:
                self._scope = scope
                await self._send(message)
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise ClientStalledError(
                f"it has read nothing for {self._loop.time() - self._since:.1f} s, while a"
                " connection was on loan for it. See PGBACKEND_CLIENT_TIMEOUT"
            ) from error
        finally:
            self._scope = None

    def end(self) -> None:
        """Stop checking."""
        if self._timer is not None:
            self._timer.cancel()

    def _check(self) -> None:
        """End the wait if its time is over.

        If other tasks wait for a connection of the same pool, half of the pool's timeout is enough:
        they must get a connection before their time is over.
        """
        self._timer = None
        if self._scope is None:
            # The next wait starts checking again.
            return
        pools = {lease.pool for wrapper in self._wrappers for lease in wrapper.leases()}
        patience = min([self._seconds, *(pool.timeout / 2 for pool in pools if pool.timeout)])
        seconds = patience if any(pool.is_exhausted for pool in pools) else self._seconds
        if pools and self._loop.time() - self._since >= seconds:
            self._scope.reschedule(self._loop.time())
        else:
            self._check_later(patience)

    def _check_later(self, patience: float) -> None:
        # Use an empty context: the task's own context would keep the task alive.
        seconds = min(patience, 1.0) / _CHECKS
        self._timer = self._loop.call_later(seconds, self._check, context=Context())
