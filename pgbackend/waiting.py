"""Waiting for a connection's socket, without a timer for each wait.

psycopg's ``wait_async`` does the same with a timer that looks at intervals whether the connection
was closed meanwhile. Nearly every wait is over long before: here the timer of one is the next
one's, too.
"""

from __future__ import annotations

import asyncio
from asyncio import Future, get_running_loop
from collections.abc import Generator
from contextvars import Context
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg.pq import ConnStatus
from psycopg.waiting import Ready

from .bridge import await_bridged

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

RV = TypeVar("RV")

# How long a wait for a connection that was closed meanwhile may go on, seconds; psycopg's own.
INTERVAL = 0.1


class SocketWait:
    """The waits for one connection's socket: one at a time."""

    def __init__(self, pgconn: PGconn) -> None:
        self._pgconn = pgconn
        self._future: Future[Ready] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def until_readable(self) -> Ready:
        """Wait, through the bridge, until something can be read.

        Raise `psycopg.OperationalError` if the connection is closed meanwhile.
        """
        loop = get_running_loop()
        socket = self._pgconn.socket
        future = self._future = loop.create_future()
        loop.add_reader(socket, self._wake)
        if self._timer is None:
            # It may outlive the wait: in the task's own context it would keep that alive.
            self._timer = loop.call_later(INTERVAL, self._look, context=Context())
        try:
            ready: Ready = await_bridged(future)
            return ready
        finally:
            if self._future is future:
                self._future = None
                loop.remove_reader(socket)

    def give_up(self) -> None:
        """Wake whoever waits, with an error: the connection is about to be closed."""
        future = self._future
        if future is not None:
            self._future = None
            future.get_loop().remove_reader(self._pgconn.socket)
            if not future.done():
                future.set_exception(psycopg.OperationalError("the connection is closed"))

    def _wake(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(Ready.R)

    def _look(self) -> None:
        self._timer = None
        future = self._future
        if future is None or future.done():
            return
        if self._pgconn.status != ConnStatus.OK:
            future.set_exception(psycopg.OperationalError("the connection is closed"))
        else:
            self._timer = future.get_loop().call_later(INTERVAL, self._look, context=Context())


def continued(gen: Generator[Any, Any, RV], state: Any) -> Generator[Any, Any, RV]:
    """Return a generator that goes on where *gen* has yielded *state*."""
    while True:
        ready = yield state
        try:
            state = gen.send(ready)
        except StopIteration as stop:
            result: RV = stop.value
            return result
