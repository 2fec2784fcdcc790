"""The worker: hears the channels with listeners, and has their notifications handled.

The command `listen` runs it in a process of its own, and `LifespanApplication` beside the requests.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any

from . import stopping
from .batches import Apart
from .channels import BaseChannel, by_stored_name, select
from .conditions import condition_of
from .consuming import StoredConsumer, TransactionalConsumer
from .hub import Hub, Subscription
from .hubs import hub_of, stop_unused
from .leasing import LeaseConsumer
from .marks import Marks
from .part import Part, Progress
from .periodic import PeriodicChannel
from .plain import PlainConsumer
from .running import running_for
from .schedule import INTERVAL, Schedule
from .sending import database

logger = logging.getLogger("pgbackend.pubsub")

# How many transactions or leased notifications a worker has at once.
CONCURRENCY = 4

# How often channels with wake = "poll" are looked at, seconds.
POLL_INTERVAL = 1.0

# How long `stop` waits for what is being handled, seconds.
GRACEFUL_TIMEOUT = 30.0


@dataclass
class Listening:
    """What a worker has for one alias: the hub, the consumers, and what they share."""

    part: Part
    hub: Hub
    stored: list[StoredConsumer]
    plain: list[PlainConsumer]
    subscriptions: list[Subscription] = field(default_factory=list)

    @property
    def consumers(self) -> list[StoredConsumer | PlainConsumer]:
        """Those of stored and of plain channels."""
        return [*self.stored, *self.plain]

    def __repr__(self) -> str:
        busy = [each for each in self.consumers if not each.is_idle]
        return f"<{self.hub!r} {self.part.schedule!r} busy={busy}>"


class Worker:
    """Handles the notifications of *channels*, by default of all that have listeners.

    *concurrency* bounds how many transactions and leases there are at once, over all channels; a
    channel's own `concurrency` bounds its part. With *max_notifications* the worker ends after so
    many. Raise ChannelNotFound where there is nothing to listen to.
    """

    progress: Progress

    def __init__(
        self,
        channels: Iterable[type[BaseChannel] | str] | None = None,
        *,
        concurrency: int = CONCURRENCY,
        max_notifications: int | None = None,
        marks: Marks | None = None,
        **hub: float,
    ) -> None:
        self.channels = select(channels)
        self.concurrency = concurrency
        self.max_notifications = max_notifications
        self.marks = marks
        self.parts: list[Listening] = []
        self._hub_options = hub
        # The names under which ready rows were found.
        self._told: set[str] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._helpers: list[asyncio.Task[None]] = []
        # Set to end a `stop` that still waits.
        self._at_once: asyncio.Future[None] | None = None
        self._error: BaseException | None = None

    def __repr__(self) -> str:
        counts = {} if not self.parts else dict(self.progress.counts)
        return f"<Worker channels={len(self.channels)} {counts} {self.parts!r}>"

    @property
    def summary(self) -> str:
        """What the worker has done, in words: ``12 handled, 1 failed``."""
        counts = [f"{count} {what}" for what, count in self.progress.counts.items() if count]
        return ", ".join(counts) or "nothing was handled"

    def start(self, *, listen: bool = True) -> None:
        """Begin, on the running loop; without *listen* only what is stored is handled."""
        self.progress = Progress(self.concurrency, self.max_notifications, self.marks)
        by_alias: dict[str, list[type[BaseChannel]]] = {}
        for channel in self.channels:
            by_alias.setdefault(database(channel), []).append(channel)
        self.parts = [self._make(alias, channels, listen) for alias, channels in by_alias.items()]
        for each in self.parts:
            self._start(each, listen)

    def _make(self, alias: str, channels: Sequence[type[BaseChannel]], listen: bool) -> Listening:
        running = running_for(alias, self.concurrency + 1)
        stored: list[StoredConsumer] = []

        def ready(names: Sequence[str]) -> None:
            for consumer in stored:
                for name in {consumer.name, *consumer.old_names}.intersection(names):
                    consumer.wake(name)
            self._warn_of_unknown(names)

        polls = any(each.wake == "poll" for each in channels)
        schedule = Schedule(alias, running, ready, POLL_INTERVAL if polls else INTERVAL)
        condition, apart = condition_of(alias), Apart(running, alias)
        part = Part(alias, running, condition, schedule, self.progress, apart)
        for channel in channels:
            if not channel.lock_notifications:
                continue
            if channel.lease is None:
                stored.append(TransactionalConsumer(part, channel))
            else:
                stored.append(LeaseConsumer(part, channel))
            schedule.expire.append(stored[-1].expire)
            schedule.names += channel.stored_names()
            schedule.prune.append(channel.prune)
            if issubclass(channel, PeriodicChannel):
                schedule.periodic.append(channel)
        plain = [PlainConsumer(part, each) for each in channels if not each.lock_notifications]
        # The streams of this loop have the same one.
        hub = (hub_of if listen else Hub)(alias, **self._hub_options)
        return Listening(part, hub, stored, plain)

    def _warn_of_unknown(self, names: Iterable[str]) -> None:
        """Log, once for each name, that rows wait whose channel is no class of this process."""
        for name in set(names) - self._told:
            self._told.add(name)
            if by_stored_name(name) is None:
                logger.warning(
                    "notifications of %r wait, and no channel here has that name: its class was"
                    " renamed or deleted, or is not imported. See `manage.py pubsub stats`",
                    name,
                )

    def _start(self, each: Listening, listen: bool) -> None:
        schedule = each.part.schedule
        if listen:
            for consumer in each.consumers:
                names = consumer.channel.listen_names()
                each.subscriptions.append(each.hub.subscribe(names, consumer.receive))
            # One look at the table finds the channels that have rows.
            each.subscriptions.append(
                each.hub.subscribe((), lambda *_: None, lambda: schedule.note(0))
            )
        for stored in each.stored:
            name = stored.channel.name()
            # More would only wait for each other.
            tasks = min(stored.channel.concurrency, self.concurrency)
            self._tasks += [self._spawn(stored.serve(), name) for _ in range(tasks)]
            if isinstance(stored, LeaseConsumer):
                self._helpers.append(self._spawn(stored.beat(), f"{name}-leases"))
        # Without stored channels, too: it deletes the rows of long plain notifications.
        self._helpers.append(self._spawn(schedule.run(), f"schedule-{each.part.alias}"))

    def _spawn(self, work: Any, name: str) -> asyncio.Task[None]:
        # In a context of its own: the worker may be started by a request, or in a transaction.
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(
            work, name=f"pubsub-{name}", context=Context()
        )
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            # An error of ours: `run` raises it, rather than let a channel be forgotten.
            self._error = error
            self.progress.changed.set()

    async def listening(self, seconds: float | None = None) -> None:
        """Wait until the server was told of all channels. Raise TimeoutError after *seconds*."""
        for each in self.parts:
            await each.hub.listening(seconds)

    async def run(self, *, batch: bool = False) -> None:
        """Handle notifications until `stop` is called, or what was asked for is done.

        With *batch* handle what is stored and ready, and end when nothing is left.
        """
        self.start(listen=not batch)
        self.progress.batch = batch
        if batch:
            for each in self.parts:
                await each.part.schedule.look()
        changed = self.progress.changed
        while not self.progress.stopping.is_set():
            if self._error is not None:
                raise self._error
            if (batch or self.progress.left == 0) and self.is_idle:
                break
            changed.clear()
            await changed.wait()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being handled, and nothing more is to be begun."""
        full = self.progress.left == 0
        return all(
            not consumer.active if full else consumer.is_idle
            for each in self.parts
            for consumer in each.consumers
        )

    async def stop(self, seconds: float = GRACEFUL_TIMEOUT) -> bool:
        """Claim no more; return whether what was being handled could end within *seconds*.

        After that it is cancelled, and given back: what its transactions did is rolled back.
        """
        self.progress.stopping.set()
        self.progress.changed.set()
        tasks = list(self._tasks)
        for each in self.parts:
            for subscription in each.subscriptions:
                subscription.close()
            for stored in each.stored:
                stored.release()
            each.part.apart.close()
            for plain in each.plain:
                tasks += plain.tasks
        told = asyncio.create_task(_tell(tasks))
        self._at_once = asyncio.get_running_loop().create_future()
        # It ends with the tasks, also if they are cancelled below.
        ended = asyncio.ensure_future(asyncio.wait([*tasks, told]))
        either: list[asyncio.Future[Any]] = [ended, self._at_once]
        await asyncio.wait(either, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        late = {task for task in tasks if not task.done()}
        rest = [*late, *self._helpers, told]
        for task in rest:
            task.cancel()
        await asyncio.wait(rest)
        for each in self.parts:
            await stop_unused(each.hub)
            each.part.running.close()
        return not late

    def cancel(self) -> None:
        """Have a `stop` that still waits for handlers cancel them now."""
        if self._at_once is not None and not self._at_once.done():
            self._at_once.set_result(None)

    def health(self) -> dict[str, Any]:
        """Return what a health check wants to know, as JSON takes it."""
        if not self.parts:
            return {"state": "starting", "hubs": [], "counts": {}, "error": None}
        hubs = [each.hub.health() for each in self.parts]
        states = {hub["state"] for hub in hubs}
        error = self.progress.error
        return {
            "state": states.pop() if len(states) == 1 else "lost",
            "hubs": hubs,
            "counts": dict(self.progress.counts),
            "active": sum(consumer.active for each in self.parts for consumer in each.consumers),
            "error": None if error is None else str(error),
        }


async def _tell(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Tell of the end now, and again after *tasks*: the last handlers may have left work, too."""
    await stopping.tell()
    if tasks:
        await asyncio.wait(tasks)
    await stopping.tell()
