"""Streams: the notifications of a channel for one reader, such as a client of the site.

A stream is for who looks on at the moment: server-sent events, a WebSocket. What is sent before
it is open, and what nobody reads, is gone; listeners are for what has to be done.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from asyncio import AbstractEventLoop, Future
from collections import deque
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from django.apps import apps
from django.db import OperationalError, router

from .errors import NotificationsMissed, PubsubError, SlowConsumer
from .hub import Hub, Subscription
from .hubs import hub_of, stop_unused
from .payload import decode
from .wire import parse

logger = logging.getLogger("pgbackend.pubsub")


class _Channel(Protocol):
    """The part of `channels.BaseChannel` that this module uses."""

    lock_notifications: ClassVar[bool]
    using: ClassVar[str | None]

    @classmethod
    def name(cls) -> str: ...
    @classmethod
    def listen_names(cls) -> list[str]: ...
    @classmethod
    def from_payload(cls, data: dict[str, Any]) -> Self: ...
    def serialize(self) -> str: ...


C = TypeVar("C", bound=_Channel)

# How long a stream waits until the server has confirmed that it listens, seconds.
OPEN_TIMEOUT = 10.0


class Stream(Generic[C]):
    """The notifications of *channel* from now on, each as an instance: an asynchronous iterator.

    ``async with`` opens it, and has it opened when the block begins: what is committed from then on
    is heard. So read the state that the notifications change inside of the block. ``async for``
    alone opens it, too, and it is closed then when nothing refers to it. One task reads a stream.

    The iteration raises `SlowConsumer` when *limit* notifications wait and another one comes, which
    ends the stream, and `NotificationsMissed` after an outage of the listening connection, after
    which the stream goes on: read the state again. Opening raises Django's OperationalError if the
    server cannot be told to listen.
    """

    def __init__(self, channel: type[C], limit: int) -> None:
        if channel.lock_notifications:
            raise PubsubError(
                f"{channel.name()} is a stored channel: its notifications are for listeners, which"
                " handle each once. Stream a channel without lock_notifications"
            )
        self.channel = channel
        self.limit = limit
        # The model needs the channels, and these the streams.
        self._notifications = apps.get_model("pgpubsub", "Notification")
        self.alias = channel.using or router.db_for_write(self._notifications)
        # Texts of notifications; None stands for those that were missed.
        self._waiting: deque[str | None] = deque()
        self._hub: Hub | None = None
        self._subscription: Subscription | None = None
        # How often the hub had lost its connection when the stream last heard of it.
        self._losses = 0
        self._reader: Future[None] | None = None
        self._is_closed = False
        self._too_slow = False

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "new" if self._hub is None else "open"
        return f"<Stream {self.channel.name()} {state} waiting={len(self._waiting)}>"

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> C:
        if self._hub is None:
            await self._open()
        while True:
            if self._too_slow:
                raise SlowConsumer(
                    f"more than {self.limit} notifications of {self.channel.name()} waited for"
                    " their reader: it reads too slowly"
                )
            if self._waiting:
                text = self._waiting.popleft()
                if text is None:
                    raise NotificationsMissed(
                        f"notifications of {self.channel.name()} may have been missed: the"
                        " listening connection was lost, and is back"
                    )
                found = await self._decoded(text)
                if found is not None:
                    return found
            elif self._is_closed:
                raise StopAsyncIteration
            else:
                self._reader = asyncio.get_running_loop().create_future()
                try:
                    await self._reader
                finally:
                    self._reader = None

    def clear(self) -> None:
        """Forget the notifications that wait, for a reader who looks at the state anyway."""
        self._waiting.clear()

    async def aclose(self) -> None:
        """Hear no more; the last stream of a database takes the listening connection with it."""
        self.close()
        if self._hub is not None:
            await stop_unused(self._hub)

    def close(self) -> None:
        """Hear no more; the iteration ends after what waits. Call it from the stream's loop."""
        self._is_closed = True
        if self._subscription is not None:
            self._subscription.close()
        self._wake()

    async def _open(self) -> None:
        if self._is_closed:
            return
        self._hub = hub = hub_of(self.alias)
        names = self.channel.listen_names()
        # A reader may drop the stream without closing it, as `async for` does after `break`.
        this = weakref.ref(self)
        self._subscription = hub.subscribe(names, partial(_receive, this), partial(_look, this))
        loop = asyncio.get_running_loop()
        weakref.finalize(self, _unsubscribe, loop, self._subscription).atexit = False
        try:
            await hub.listening(OPEN_TIMEOUT)
        except TimeoutError:
            await self.aclose()
            raise OperationalError(
                f"{self.channel.name()} cannot be listened to: {hub!r}"
            ) from hub.connection.error
        except BaseException:
            self.close()
            raise
        self._losses = hub.connection.losses
        self._waiting.clear()

    def _receive(self, payload: str) -> None:
        if len(self._waiting) >= self.limit:
            self._too_slow = True
            self._waiting.clear()
            self.close()
        else:
            self._waiting.append(payload)
            self._wake()

    def _look(self) -> None:
        """Note that notifications were missed, if the connection is another one than before."""
        assert self._hub is not None
        if self._hub.connection.losses != self._losses:
            self._losses = self._hub.connection.losses
            self._waiting.append(None)
            self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def _decoded(self, text: str) -> C | None:
        """Return the notification, or None for one that cannot be read, which is logged."""
        wire = parse(text)
        payload: Any = wire.payload
        if wire.kind == "reference":
            rows = self._notifications.objects.using(self.alias).filter(pk=wire.id, state="plain")
            payload = await rows.values_list("payload", flat=True).afirst()
        if payload is None:
            logger.error("a notification of %s has no payload: %.50r", self.channel.name(), text)
            return None
        try:
            return decode(self.channel, payload)
        except Exception:
            logger.exception("a notification of %s cannot be read", self.channel.name())
            return None


def _receive(this: weakref.ref[Stream[Any]], name: str, payload: str) -> None:
    if (stream := this()) is not None:
        stream._receive(payload)


def _look(this: weakref.ref[Stream[Any]]) -> None:
    if (stream := this()) is not None:
        stream._look()


def _unsubscribe(loop: AbstractEventLoop, subscription: Subscription) -> None:
    # The garbage collector may run in any thread, and the loop may be closed, or be so by then.
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(subscription.close)
