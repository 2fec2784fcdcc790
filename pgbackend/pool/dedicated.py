"""A connection outside the pool, for one purpose: it is watched, and replaced when it is lost.

A listener waits for the server for hours. Such a connection counts in no pool's ``max_size``, is
never lent, and has to be there again after an outage without anybody asking for it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
from asyncio import AbstractEventLoop, Future
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any, cast
from weakref import WeakSet

import psycopg
from psycopg import abc, sql
from psycopg.pq import PGnotify

from .passwords import forget_passwords

logger = logging.getLogger("pgbackend.dedicated")

# How long connecting may take, seconds, where the settings say nothing.
CONNECT_TIMEOUT = 10.0

# How long a statement on such a connection may take, seconds: they are short ones.
STATEMENT_TIMEOUT = 10.0

# The waits between attempts to connect, seconds: the first, and the longest.
FIRST_DELAY = 0.1
LONGEST_DELAY = 15.0


def backoff_delay(
    failures: int, first: float = FIRST_DELAY, longest: float = LONGEST_DELAY
) -> float:
    """Return how many seconds to wait after so many *failures* in a row, 1 or more.

    The wait doubles from *first* to *longest*. Half of it is random, so that many clients of a
    server that has come back do not connect at the same moment.
    """
    full = min(first * 2.0 ** min(failures - 1, 60), longest)
    return full * random.uniform(0.5, 1.0)


class DedicatedConnection:
    """A connection that is open from `run` to its end, and is made anew whenever it is lost.

    *arguments* returns those of `psycopg.AsyncConnection.connect`; it is called for each attempt,
    so that a changed password is read. *prepare* is awaited for each new connection before that
    counts as open. *received* is called with channel and payload of each notification, in their
    order, and must not raise. *lost* is called with the error when an open connection is lost.

    ``repr()`` shows the state: ``new``, ``connecting``, ``open``, ``lost`` (until the next attempt)
    or ``closed``, how often it was lost, and the last error.
    """

    def __init__(
        self,
        name: str,
        arguments: Callable[[], dict[str, Any]],
        *,
        prepare: Callable[[DedicatedConnection], Awaitable[None]],
        received: Callable[[str, str], None],
        lost: Callable[[BaseException], None],
    ) -> None:
        self.name = name
        self.state = "new"
        # How often an open connection was lost.
        self.losses = 0
        # Attempts that failed since the connection was last open.
        self.failures = 0
        self.error: BaseException | None = None
        # When the server last sent anything, by `time.monotonic`.
        self.heard_at = 0.0
        self._arguments = arguments
        self._prepare = prepare
        self._received = received
        self._lost = lost
        self._conn: psycopg.AsyncConnection[Any] | None = None
        self._ended: Future[BaseException] | None = None
        self._lock = asyncio.Lock()
        # Whether a statement of `execute` reads what the server sends.
        self._executing = False
        # Whether no other connection is to be made.
        self._is_retired = False
        _all.add(self)

    def __repr__(self) -> str:
        words = [f"{self.name!r} {self.state}"]
        if self._conn is not None:
            words.append(f"pid={self._conn.info.backend_pid}")
        if self.losses:
            words.append(f"losses={self.losses}")
        if self.failures:
            words.append(f"failures={self.failures}")
        if self.error is not None and self.state != "open":
            words.append(f"error={str(self.error).splitlines()[:1]}")
        return f"<{type(self).__name__} {' '.join(words)}>"

    async def is_behind_pooler(self) -> bool:
        """Return whether a pooler stands before the server: it tells process ids of its own."""
        [[pid]] = await self.execute("SELECT pg_backend_pid()")
        return self._conn is None or pid != self._conn.info.backend_pid

    async def execute_elsewhere(self, query: str, params: abc.Params | None = None) -> None:
        """Execute a statement on another connection, which is closed afterwards."""
        async with await self._open() as conn:
            await conn.execute(cast(Any, query), params)

    async def run(self) -> None:
        """Connect, watch, and connect again, until the task is cancelled."""
        try:
            while not self._is_retired:
                try:
                    await self._live()
                except Exception as error:
                    self._note(error)
                await asyncio.sleep(backoff_delay(self.failures))
        finally:
            self.state = "closed"

    async def _live(self) -> None:
        """Serve one connection until it is lost; raise the error that ended it."""
        self.state = "connecting"
        conn = await self._connect()
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        self._conn = conn
        try:
            with self._watched(loop, conn):
                async with asyncio.timeout(3 * STATEMENT_TIMEOUT):
                    await self._prepare(self)
                self.state, self.failures, self.error = "open", 0, None
                raise await self._ended
        finally:
            self._ended.cancel()
            if self._executing:
                self._cut(conn)
            await self._close(conn)

    async def _close(self, conn: psycopg.AsyncConnection[Any]) -> None:
        """Close *conn*, also if this is cancelled meanwhile, as by the end of the loop."""
        cancelled: asyncio.CancelledError | None = None
        # psycopg would wait for ever for a statement whose connection is closed under it. That was
        # cut, so it ends soon.
        while True:
            try:
                await self._lock.acquire()
                break
            except asyncio.CancelledError as error:
                cancelled = error
        try:
            self._conn = None
            with suppress(Exception):
                await conn.close()
        finally:
            self._lock.release()
        if cancelled is not None:
            raise cancelled

    def retire(self) -> None:
        """Close the connection at once, and make no other one; from any thread."""
        self._is_retired = True
        if self._conn is not None:
            self._cut(self._conn)

    @property
    def database(self) -> str | None:
        """The name of the database that is connected to; None: no connection is open."""
        conn = self._conn
        return None if conn is None or conn.closed else conn.info.dbname

    def _note(self, error: Exception) -> None:
        was_open, self.state, self.error = self.state == "open", "lost", error
        self.failures += 1
        if was_open:
            self.losses += 1
            logger.warning("the connection %r was lost: %s", self.name, error)
        elif self.failures == 1 or not self.failures % 10:
            logger.warning(
                "cannot open the connection %r, attempt %d: %s", self.name, self.failures, error
            )
        self._lost(error)

    async def _connect(self) -> psycopg.AsyncConnection[Any]:
        conn = await self._open()
        # In place of psycopg's own, which raises an error for a payload that it cannot decode.
        conn.pgconn.notify_handler = self._on_notify
        return conn

    async def _open(self) -> psycopg.AsyncConnection[Any]:
        try:
            arguments = {"connect_timeout": CONNECT_TIMEOUT, **self._arguments()}
            seconds = float(arguments["connect_timeout"]) or CONNECT_TIMEOUT
            # The time-out of psycopg is one for each address, and none for a silent server.
            async with asyncio.timeout(seconds + 1.0):
                return await psycopg.AsyncConnection.connect(**{**arguments, "autocommit": True})
        except TimeoutError:
            raise psycopg.OperationalError("the server did not answer in time") from None
        except Exception as error:
            forget_passwords(error)
            raise

    @contextmanager
    def _watched(
        self, loop: AbstractEventLoop, conn: psycopg.AsyncConnection[Any]
    ) -> Iterator[None]:
        """Read what the server sends, at once, while no statement does."""
        # A duplicate: psycopg registers the descriptor itself for each of its statements, and libuv
        # must not be left with one that psycopg has closed.
        fd = os.dup(conn.fileno())
        loop.add_reader(fd, self._read)
        try:
            yield
        finally:
            loop.remove_reader(fd)
            os.close(fd)

    def _read(self) -> None:
        if self._executing or self._conn is None:
            return
        self.heard_at = monotonic()
        pgconn = self._conn.pgconn
        try:
            pgconn.consume_input()
            # Let libpq parse what it has read, errors and the server's goodbye among it.
            pgconn.is_busy()
            self._take_notifications()
        except psycopg.Error as error:
            self.lose(error)

    def _take_notifications(self) -> None:
        assert self._conn is not None
        pgconn = self._conn.pgconn
        while (notify := pgconn.notifies()) is not None:
            self._on_notify(notify)

    def _on_notify(self, notify: PGnotify) -> None:
        """Take a notification; a database without an encoding may send what is no text."""
        self._received(notify.relname.decode(), notify.extra.decode(errors="surrogateescape"))

    def lose(self, error: BaseException) -> None:
        """Give the connection up; `run` makes another one."""
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(error)

    @staticmethod
    async def _rows(
        conn: psycopg.AsyncConnection[Any],
        query: str | sql.Composed,
        params: abc.Params | None,
    ) -> list[Any]:
        cursor = await conn.execute(cast(Any, query), params)
        return await cursor.fetchall() if cursor.description else []

    @staticmethod
    def _cut(conn: psycopg.AsyncConnection[Any]) -> None:
        """Have the running statement end at once, as if the server had closed the connection."""
        with suppress(OSError), socket.socket(fileno=os.dup(conn.fileno())) as ours:
            ours.shutdown(socket.SHUT_RDWR)

    async def execute(
        self,
        query: str | sql.Composed,
        params: abc.Params | None = None,
        *,
        seconds: float | None = None,
    ) -> list[Any]:
        """Execute a statement and return its rows; others wait meanwhile.

        A statement that takes longer than *seconds*, `STATEMENT_TIMEOUT` by default, or whose
        connection fails, gives the connection up. Raise `psycopg.OperationalError` then, and
        where no connection is open.
        """
        async with self._lock:
            conn = self._conn
            if conn is None:
                raise psycopg.OperationalError(f"no connection: {self!r}")
            seconds = seconds or STATEMENT_TIMEOUT
            silent: list[psycopg.OperationalError] = []

            def give_up() -> None:
                words = f"the server did not answer within {seconds:g} s"
                silent.append(psycopg.OperationalError(words))
                self._cut(conn)

            timer = asyncio.get_running_loop().call_later(seconds, give_up)
            self._executing = True
            # In a task of its own: psycopg would ask the server to stop a cancelled statement, and
            # wait for the answer. A silent server gives none.
            task = asyncio.create_task(self._rows(conn, query, params))
            try:
                return await asyncio.shield(task)
            except asyncio.CancelledError:
                self._cut(conn)
                self.lose(psycopg.OperationalError("a statement was cancelled"))
                await asyncio.wait([task])
                if not task.cancelled():
                    # The error that the cut has caused is of no interest, but is to be retrieved.
                    task.exception()
                raise
            except psycopg.Error as error:
                # The timer says itself that it ended. Loops may call it a little before its time.
                if silent:
                    self.lose(silent[0])
                    raise silent[0] from None
                if conn.closed:
                    self.lose(error)
                raise
            finally:
                timer.cancel()
                self.heard_at = monotonic()
                self._executing = False
                if conn is self._conn and not conn.closed:
                    self._take_notifications()


_all: WeakSet[DedicatedConnection] = WeakSet()


def retire_all(database: str) -> None:
    """Retire the connections to *database*, which is to be dropped: the loops may run no more."""
    for each in list(_all):
        if each.database == database:
            each.retire()
