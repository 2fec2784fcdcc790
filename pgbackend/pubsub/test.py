"""What tests of a project's channels need: inside a `TestCase` nothing is committed or heard.

Inside of `captured_notifications` plain notifications go through rows, which the transaction of the
test can see. `deliver` calls the listeners there and then.
"""

from __future__ import annotations

import asyncio
import inspect
from contextvars import copy_context
from typing import Any

from asgiref.sync import async_to_sync
from django.db import DatabaseError, connections, transaction

from .. import await_bridged, bridged, is_bridged
from .carried import BY_ROW, carried, carry
from .channels import BaseChannel, by_stored_name, locate_channel, select
from .models import Notification
from .payload import decode
from .sending import database
from .waiting import handling

# How often `deliver` looks for what listeners have sent; more is a listener that never ends.
ROUNDS = 100


class Captured(list[BaseChannel]):
    """The notifications of a block, in the order in which they were sent."""

    def of(self, channel: type[BaseChannel] | str, **fields: Any) -> list[Any]:
        """Return those of *channel*, a class or its path, that have these *fields*."""
        wanted = locate_channel(channel)
        return [
            each
            for each in self
            if isinstance(each, wanted)
            and all(getattr(each, name) == value for name, value in fields.items())
        ]


class captured_notifications:  # used as a function
    """Capture what `notify` and triggers send while the block runs, on the alias *using*.

    ``with captured_notifications() as captured:`` gives a list that is filled when the block ends;
    ``async with`` does in asynchronous tests. Plain notifications are held back, for `deliver` or
    for nobody; stored ones stay in the table. What other threads send is not there.
    """

    def __init__(self, using: str | None = None) -> None:
        self.using = using or database(BaseChannel)
        self.captured = Captured()

    def __enter__(self) -> Captured:
        with connections[self.using].cursor() as cursor:
            cursor.execute("SELECT COALESCE(max(id), 0) FROM pgpubsub_notification")
            self._last = int(cursor.fetchone()[0])
        self._before = carried(self.using, BY_ROW)
        carry(self.using, BY_ROW, "on")
        return self.captured

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        carry(self.using, BY_ROW, self._before)
        self._end(error)

    async def __aenter__(self) -> Captured:
        await bridged(self.__enter__)()
        return self.captured

    async def __aexit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        await bridged(self.__exit__)(kind, error, traceback)

    def _end(self, error: BaseException | None) -> None:
        if isinstance(error, DatabaseError):
            # The transaction may take no further statement.
            return
        rows = Notification.objects.using(self.using).filter(pk__gt=self._last)
        for row in rows.order_by("pk"):
            channel = by_stored_name(row.channel)
            if channel is not None:
                self.captured.append(decode(channel, row.payload))


class assert_notified(captured_notifications):  # used as a function
    """Fail unless the block sends *times* notifications of *channel* that have these *fields*.

    Use it as `captured_notifications`.
    """

    def __init__(
        self,
        channel: type[BaseChannel] | str,
        times: int = 1,
        using: str | None = None,
        **fields: Any,
    ) -> None:
        self.channel = locate_channel(channel)
        self.times = times
        self.fields = fields
        super().__init__(using or database(self.channel))

    def _end(self, error: BaseException | None) -> None:
        super()._end(error)
        found = self.captured.of(self.channel, **self.fields)
        if error is None and len(found) != self.times:
            asked = ", ".join(f"{name}={value!r}" for name, value in self.fields.items())
            sent = "\n".join(f"  {each!r}" for each in self.captured) or "  nothing"
            raise AssertionError(
                f"{self.channel.__name__}({asked}) was sent {len(found)} times, not {self.times}."
                f" Sent:\n{sent}"
            )


def deliver(*channels: type[BaseChannel] | str, delayed: bool = False) -> list[Any]:
    """Call the listeners of what waits for *channels*, by default all, and return it.

    That is what is stored and, inside of `captured_notifications`, what is plain; and what the
    listeners themselves send. With *delayed* also what is not due yet. Each notification has a
    savepoint; an exception of a listener is raised, and its row stays. Raise RuntimeError if
    listeners go on and on sending.
    """
    delivered: list[Any] = []
    chosen = select(channels or None)
    for _ in range(ROUNDS):
        found = [each for channel in chosen for each in _waiting(channel, delayed)]
        if not found:
            return delivered
        for alias, row, channel in sorted(found, key=_order):
            delivered.append(_deliver(alias, row, channel))
    raise RuntimeError(
        f"deliver() has handled {len(delivered)} notifications, and listeners send more and more:"
        f" the last one was {delivered[-1]!r}"
    )


adeliver = bridged(deliver)


def _order(waiting: tuple[str, Any, Any]) -> tuple[str, int, int]:
    alias, row, _ = waiting
    return alias, -row.priority, row.pk


def _deliver(alias: str, row: Notification, channel: type[BaseChannel]) -> BaseChannel:
    notification = decode(channel, row.payload)
    with transaction.atomic(using=alias), handling(alias, [row.pk]):
        for listener in notification.listeners:
            copy_context().run(_call, listener.callback, notification.signature)
        row.delete()
    return notification


def _call(callback: Any, arguments: dict[str, Any]) -> None:
    result = callback(**arguments)
    if not inspect.isawaitable(result):
        return
    if is_bridged():
        await_bridged(result)
        return
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        async_to_sync(_awaited)(result)
    else:
        raise RuntimeError("In asynchronous code: await adeliver()")


async def _awaited(awaitable: Any) -> None:
    await awaitable


def _waiting(channel: type[BaseChannel], delayed: bool) -> list[tuple[str, Notification, Any]]:
    alias = database(channel)
    states = ["ready"] if channel.lock_notifications else ["plain"]
    if delayed and channel.lock_notifications:
        states.append("delayed")
    rows = Notification.from_channel(channel).using(alias).filter(state__in=states)
    return [(alias, row, channel) for row in rows]
