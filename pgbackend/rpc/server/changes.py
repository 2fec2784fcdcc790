"""What tells a service that rows have changed: triggers of exposed tables, and who hears them.

A trigger fires once for a statement and names its table alone, so a transaction sends one
notification for each table, however many rows it changes. Rows do not travel by it: who waits for a
queryset runs that again, as the principal that it is for.
"""

from __future__ import annotations

import asyncio
from asyncio import AbstractEventLoop, Semaphore, TimerHandle
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from weakref import WeakKeyDictionary

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db import models

from ...bridge.greenlets import await_bridged
from ..protocol.errors import Unavailable

# The channel of all tables; the payload is a table's name.
CHANNEL = "pgbackend_rpc_changed"

# How long a first message waits until the server is listened to, seconds.
LISTEN_TIMEOUT = 5.0

# How many querysets of those that wait are run again at once, so that a change that thousands wait
# for leaves connections to other messages.
AT_ONCE = 4

# How long the listening connection is kept when nobody waits: the next message of a subscription
# comes soon.
LINGER = 60.0


def register_trigger(model: type[models.Model]) -> None:
    """Have the tables of *model*, those of its parents too, tell of their changes.

    Migrations install the triggers, as all of django-pgtrigger's. Raise ImproperlyConfigured where
    that is not installed.
    """
    if not apps.is_installed("pgtrigger"):
        raise ImproperlyConfigured(
            f'expose({model._meta.label}): subscribe needs "pgtrigger" in INSTALLED_APPS, whose'
            " triggers tell of changes: pip install 'pgbackend[pubsub]'"
        )
    pgtrigger: Any = import_module("pgtrigger")
    opts = model._meta
    # A proxy has the trigger itself: its migration is in the proxy's application, which may be
    # another one than that of the table.
    others = [each for each in opts.all_parents if each is not opts.concrete_model]
    for each in [model, *(other for other in others if not other._meta.proxy)]:
        if each._meta.managed and not any(
            found is each and trigger.name == "rpc_changed"
            for found, trigger in pgtrigger.registered()
        ):
            pgtrigger.register(
                pgtrigger.Trigger(
                    name="rpc_changed",
                    level=pgtrigger.Statement,
                    when=pgtrigger.After,
                    operation=pgtrigger.Insert
                    | pgtrigger.Update
                    | pgtrigger.Delete
                    | pgtrigger.Truncate,
                    func=f"PERFORM pg_notify('{CHANNEL}', TG_TABLE_NAME); RETURN NULL;",
                )
            )(each)


def tables(found: Iterable[type[models.Model]]) -> frozenset[str]:
    """Return the names, as triggers send them, of the tables of the models *found*."""
    return frozenset(_table(each) for model in found for each in _with_tables(model))


def _with_tables(model: type[models.Model]) -> list[Any]:
    opts = model._meta
    return [opts.concrete_model, *(each for each in opts.all_parents if not each._meta.proxy)]


def _table(model: Any) -> str:
    # A name with a schema is written '"schema"."table"' in db_table.
    return str(model._meta.db_table).strip('"').rpartition('"."')[2]


class Wait:
    """One who waits for changes: which tables were changed since `clear`."""

    def __init__(self, hearing: Hearing) -> None:
        self._hearing = hearing
        self._changed: set[str] = set()
        # Whether anything may have changed: the connection was lost meanwhile.
        self._any = False
        self._is_stopped = False
        self._event = asyncio.Event()

    def close(self) -> None:
        """Wait no longer, for any reason."""
        self._hearing.remove(self)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait, in bridged code, until few others look at rows because of a change."""
        await_bridged(self._hearing.slots.acquire())
        try:
            yield
        finally:
            self._hearing.slots.release()

    def note(self, table: str | None) -> None:
        """Note a change of *table*; None: of any."""
        if table is None:
            self._any = True
        else:
            self._changed.add(table)
        self._event.set()

    def stop(self) -> None:
        """Wait no longer: the process is about to end."""
        self._is_stopped = True
        self._event.set()

    def clear(self) -> None:
        """Forget the changes so far: all is looked at now."""
        self._changed.clear()
        self._any = False

    async def until(self, wanted: frozenset[str], earliest: float, latest: float) -> bool:
        """Wait until one of the tables *wanted* is changed; return False if none was.

        That is not before *earliest*, so that several changes are one, and not after *latest*, both
        by the clock of the loop.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout_at(latest):
                while not (self._is_stopped or self._any or self._changed & wanted):
                    self._event.clear()
                    await self._event.wait()
                if not self._is_stopped:
                    await asyncio.sleep(max(0.0, earliest - loop.time()))
        except TimeoutError:
            return False
        return not self._is_stopped


class Hearing:
    """Hears, for all who wait on one event loop, which tables of a database are changed."""

    def __init__(self, alias: str) -> None:
        # Not above: services without subscriptions need no django-pgtrigger.
        hubs: Any = import_module("pgbackend.pubsub.hubs")
        self._loop = asyncio.get_running_loop()
        self.slots = Semaphore(AT_ONCE)
        self._waits: set[Wait] = set()
        self._hub = hubs.hub_of(alias)
        self._subscription = self._hub.subscribe([CHANNEL], self._receive, self._look)
        self._timer: TimerHandle | None = None
        self._alias = alias

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._alias!r} waits={len(self._waits)} {self._hub!r}>"

    async def listening(self) -> None:
        """Wait until changes are heard; raise Unavailable if the server cannot be listened to."""
        try:
            await self._hub.listening(LISTEN_TIMEOUT)
        except TimeoutError:
            raise Unavailable("the service cannot hear of changes now") from None

    def open(self) -> Wait:
        """Return what is told of changes until it is closed."""
        wait = Wait(self)
        self._waits.add(wait)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        return wait

    def remove(self, wait: Wait) -> None:
        """Have *wait* told no longer."""
        self._waits.discard(wait)
        if not self._waits and self._timer is None and not self._loop.is_closed():
            self._timer = self._loop.call_later(LINGER, self.close)

    def close(self) -> None:
        """Hear no more."""
        of_loop = _hearings.get(self._loop, {})
        if of_loop.get(self._alias) is self:
            del of_loop[self._alias]
        self._subscription.close()

    def stop(self) -> None:
        """Have all stop waiting."""
        for each in self._waits:
            each.stop()

    def _receive(self, _name: str, table: str) -> None:
        for each in self._waits:
            each.note(table)

    def _look(self) -> None:
        for each in self._waits:
            each.note(None)


_hearings: WeakKeyDictionary[AbstractEventLoop, dict[str, Hearing]] = WeakKeyDictionary()


def hearing_of(alias: str) -> Hearing:
    """Return what hears changes in the database of *alias* for the running loop."""
    loop = asyncio.get_running_loop()
    if loop not in _hearings:
        # A hub keeps its loop alive, so those of loops that have ended are forgotten here.
        for reference in _hearings.keyrefs():
            known = reference()
            if known is not None and known.is_closed():
                _hearings.pop(known, None)
    of_loop = _hearings.setdefault(loop, {})
    if alias not in of_loop:
        of_loop[alias] = Hearing(alias)
    return of_loop[alias]


def stop_waiting() -> None:
    """Have all that wait on the running loop stop: their messages are answered now."""
    for each in _hearings.get(asyncio.get_running_loop(), {}).values():
        each.stop()
