"""The hub: one listening connection for each process, event loop and alias.

Whoever wants to hear a channel subscribes here: the worker, streams, awaited results. One
connection carries thousands of channels.

A listening connection can be dead without any error: a firewall forgot it, a pooler gave its
session to somebody else. So the hub notifies itself at intervals (the probe), and has its
subscribers look at the stored notifications at longer ones (reconcile) and after each connect: what
was notified while nobody listened is in the table, if it was stored.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import secrets
from asyncio import Event
from collections.abc import Callable, Iterable
from contextvars import Context
from time import monotonic
from typing import Any

import psycopg
from django.db import DEFAULT_DB_ALIAS
from psycopg import sql

from ..pool.dedicated import DedicatedConnection
from .connecting import arguments_of

logger = logging.getLogger("pgbackend.pubsub")

# How often the hub notifies itself, and how long the notification may take, seconds.
PROBE_INTERVAL = 10.0
PROBE_TIMEOUT = 5.0

# How often subscribers look at the stored notifications, without a notification, seconds.
RECONCILE_INTERVAL = 30.0

# How many LISTEN commands go in one message.
_CHUNK = 500

NOT_HEARD = (
    "a notification to itself did not come back within {:g} s. Where a pooler such as PgBouncer"
    " stands before the server, name the server itself in PGPUBSUB_LISTEN_DSN: LISTEN needs a"
    " session of its own"
)


class Subscription:
    """What one subscriber hears: the names, a function for messages, and one for looking again."""

    __slots__ = ("_hub", "look", "names", "receive")

    def __init__(
        self,
        hub: Hub,
        names: frozenset[str],
        receive: Callable[[str, str], None],
        look: Callable[[], None] | None,
    ) -> None:
        self._hub = hub
        self.names = names
        self.receive = receive
        self.look = look

    def close(self) -> None:
        """Hear no more; the channels that nobody else hears are no longer listened to."""
        self._hub.unsubscribe(self)


class Hub:
    """Listens on the channels of its subscriptions, from `start` to `stop`.

    ``repr()`` and `health` show the state: ``connecting``, ``listening`` or ``lost``.
    """

    def __init__(
        self,
        alias: str = DEFAULT_DB_ALIAS,
        *,
        probe_interval: float = PROBE_INTERVAL,
        probe_timeout: float = PROBE_TIMEOUT,
        reconcile_interval: float = RECONCILE_INTERVAL,
    ) -> None:
        self.alias = alias
        self.probe_interval = probe_interval
        self.probe_timeout = probe_timeout
        self.reconcile_interval = reconcile_interval
        self.connection = DedicatedConnection(
            f"listen-{alias}",
            lambda: arguments_of(alias),
            prepare=self._prepare,
            received=self._received,
            lost=lambda error: self._is_listening.clear(),
        )
        self.received = 0
        # Called when the last subscription was closed.
        self.unused: Callable[[Hub], None] | None = None
        self._subscribers: dict[str, list[Subscription]] = {}
        self._subscriptions: list[Subscription] = []
        # The names that the server has been told of, on the connection that is open.
        self._told: set[str] = set()
        self._changed = Event()
        self._is_listening = Event()
        # Set whenever the server was told of something.
        self._has_told = Event()
        # How many connections were prepared: what waited for an older one must not end this one.
        self._generation = 0
        self._probe_name = f"pgbackend_probe_{os.getpid()}_{secrets.token_hex(8)}"
        # What is set when a probe is heard, by its token.
        self._probes: dict[str, Event] = {}
        self._tokens = itertools.count()
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return (
            f"<Hub {self.alias!r} {self.state} channels={len(self._subscribers)}"
            f" received={self.received} {self.connection!r}>"
        )

    @property
    def state(self) -> str:
        """``connecting``, ``listening``, ``lost`` or ``stopped``."""
        if not self._tasks:
            return "stopped"
        if self._is_listening.is_set():
            return "listening"
        return "lost" if self.connection.state == "lost" else "connecting"

    @property
    def has_subscriptions(self) -> bool:
        """Whether anybody hears anything."""
        return bool(self._subscriptions)

    def health(self) -> dict[str, Any]:
        """Return what a health check wants to know, as JSON takes it; times in seconds."""
        connection = self.connection
        return {
            "alias": self.alias,
            "state": self.state,
            "channels": len(self._subscribers),
            "received": self.received,
            "losses": connection.losses,
            "failures": connection.failures,
            "silent_for": round(monotonic() - connection.heard_at, 3)
            if connection.heard_at
            else None,
            "error": None if connection.error is None else str(connection.error),
        }

    def start(self) -> None:
        """Connect and listen, in tasks of the hub's own; do nothing if that was begun already."""
        if self._tasks:
            return
        loop = asyncio.get_running_loop()
        # Not in the context of the request that happens to come first.
        self._tasks = [
            loop.create_task(work(), name=f"pubsub-{name}-{self.alias}", context=Context())
            for name, work in (
                ("listen", self.connection.run),
                ("tell", self._tell_changes),
                ("probe", self._probe_at_intervals),
                ("reconcile", self._reconcile_at_intervals),
            )
        ]
        for task in self._tasks:
            task.add_done_callback(_report)

    async def stop(self) -> None:
        """Close the connection; subscriptions stay, and hear again after another `start`."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        self._is_listening.clear()
        if tasks:
            await asyncio.wait(tasks)

    async def listening(self, seconds: float | None = None) -> None:
        """Wait until the server was told of all names subscribed to so far.

        Raise TimeoutError after *seconds*, None: never.
        """
        async with asyncio.timeout(seconds):
            while not (self._is_listening.is_set() and self._told >= self._subscribers.keys()):
                self._changed.set()
                self._has_told.clear()
                await self._has_told.wait()

    def subscribe(
        self,
        names: Iterable[str],
        receive: Callable[[str, str], None],
        look: Callable[[], None] | None = None,
    ) -> Subscription:
        """Call *receive* with channel and payload of each notification under one of *names*.

        Call *look* whenever notifications may have been missed: after each connect, and at each
        reconcile. Both are called on the loop and must not wait.
        """
        subscription = Subscription(self, frozenset(names), receive, look)
        self._subscriptions.append(subscription)
        for name in subscription.names:
            self._subscribers.setdefault(name, []).append(subscription)
        self._changed.set()
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Do what `Subscription.close` does."""
        if subscription not in self._subscriptions:
            return
        self._subscriptions.remove(subscription)
        for name in subscription.names:
            self._subscribers[name].remove(subscription)
            if not self._subscribers[name]:
                del self._subscribers[name]
        self._changed.set()
        if self.unused is not None and not self._subscriptions:
            self.unused(self)

    def look(self) -> None:
        """Have all subscribers look at what is stored."""
        for subscription in list(self._subscriptions):
            if subscription.look is not None:
                subscription.look()

    def _received(self, name: str, payload: str) -> None:
        if name == self._probe_name:
            if (heard := self._probes.get(payload)) is not None:
                heard.set()
            return
        self.received += 1
        # A copy: a subscriber may close its subscription here.
        for subscription in tuple(self._subscribers.get(name, ())):
            try:
                subscription.receive(name, payload)
            except Exception:
                logger.exception("a subscriber of %r failed to take a notification", name)

    async def _prepare(self, connection: DedicatedConnection) -> None:
        """Listen to everything on a new connection, and look at what is stored."""
        self._told = set()
        self._generation += 1
        await connection.execute(_listen([self._probe_name]))
        await self._tell(connection)
        await self._probe(connection, elsewhere=await connection.is_behind_pooler())
        self._is_listening.set()
        self._has_told.set()
        self.look()

    async def _tell_changes(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            await self._is_listening.wait()
            generation = self._generation
            try:
                await self._tell(self.connection)
            except psycopg.Error as error:
                # The next connection is told of everything.
                self._lose(generation, error)
            self._has_told.set()

    def _lose(self, generation: int, error: BaseException) -> None:
        if generation == self._generation:
            self.connection.lose(error)

    async def _tell(self, connection: DedicatedConnection) -> None:
        while new := sorted(self._subscribers.keys() - self._told):
            for names in _chunks(new):
                await connection.execute(_listen(names))
                self._told.update(names)
        for names in _chunks(sorted(self._told - self._subscribers.keys())):
            self._told.difference_update(names)
            await connection.execute(_unlisten(names))
            # Somebody may have subscribed again meanwhile.
            self._changed.set()

    async def _probe(self, connection: DedicatedConnection, *, elsewhere: bool = False) -> None:
        """Notify the hub itself; raise OperationalError if that does not come back.

        Behind a pooler notify it from *elsewhere*: the statement of the hub's own connection may be
        sent to the session that listens, by chance.
        """
        token = str(next(self._tokens))
        heard = self._probes[token] = Event()
        notify = "SELECT pg_notify(%s, %s)", [self._probe_name, token]
        try:
            if elsewhere:
                await connection.execute_elsewhere(*notify)
            else:
                await connection.execute(*notify, seconds=self.probe_timeout)
            async with asyncio.timeout(self.probe_timeout):
                await heard.wait()
        except TimeoutError:
            raise psycopg.OperationalError(NOT_HEARD.format(self.probe_timeout)) from None
        finally:
            del self._probes[token]

    async def _probe_at_intervals(self) -> None:
        while True:
            await asyncio.sleep(self.probe_interval)
            if not self._is_listening.is_set():
                continue
            generation = self._generation
            try:
                await self._probe(self.connection)
            except psycopg.Error as error:
                # The connection may be another one by now.
                self._lose(generation, error)

    async def _reconcile_at_intervals(self) -> None:
        while True:
            await asyncio.sleep(self.reconcile_interval)
            self.look()


def _report(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.critical("%s has ended by an error", task.get_name(), exc_info=error)


def _chunks(names: list[str]) -> Iterable[list[str]]:
    return (names[begin : begin + _CHUNK] for begin in range(0, len(names), _CHUNK))


def _listen(names: Iterable[str]) -> sql.Composed:
    return sql.SQL("; ").join(sql.SQL("LISTEN {}").format(sql.Identifier(name)) for name in names)


def _unlisten(names: Iterable[str]) -> sql.Composed:
    return sql.SQL("; ").join(sql.SQL("UNLISTEN {}").format(sql.Identifier(name)) for name in names)
