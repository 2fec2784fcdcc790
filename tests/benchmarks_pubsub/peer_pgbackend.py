"""pgbackend.pubsub: its worker as `listen` runs it, with coroutines as listeners."""

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import django
from django.core.management import call_command

from tests.benchmarks_pubsub.peer import CHUNK, AsyncPeer
from tests.benchmarks_pubsub.record import Record, now

django.setup()

from pgbackend.pubsub import Channel, anotify_many, asend, listener  # noqa: E402
from pgbackend.pubsub.worker import Worker  # noqa: E402
from tests.benchmarks_pubsub.site_pgbackend import channels, models  # noqa: E402

_CHANNELS: dict[str, Any] = {
    "plain": channels.Plain,
    "stored": channels.Stored,
    "trigger": channels.Inserted,
}


class Peer(AsyncPeer):
    tables: ClassVar[tuple[str, ...]] = ("pgpubsub_notification",)
    kinds: ClassVar[tuple[str, ...]] = ("plain", "stored", "trigger")
    wakes: ClassVar[tuple[str, ...]] = ("notify", "poll")

    def __init__(self, dsn: str, record: Record, **options: Any) -> None:
        super().__init__(dsn, record, **options)
        channels.handle[0] = record.note

    def prepare(self) -> None:
        call_command("migrate", verbosity=0, run_syncdb=True)
        call_command("pgtrigger", "install", verbosity=0)

    async def _open(self) -> None:
        await models.Message.objects.acount()

    async def aopen(self, connections: int) -> None:
        await self._open()

    @staticmethod
    def loop_factory(**options: Any) -> Callable[[], asyncio.AbstractEventLoop] | None:
        if options.get("loop") != "uvloop":
            return None
        import uvloop

        return uvloop.new_event_loop

    async def alisten(self, kind: str) -> None:
        await Worker([_CHANNELS[kind]]).run()

    def wire(self, number: int = 0) -> tuple[str, str]:
        channel = _many[number] if _many else channels.Plain
        fields = ', "number": ' + f"{number}" if _many else ""
        return channel.listen_name(), '{"kwargs": {"sent": %s' + fields + "}}"

    def declare(self, channels: int) -> None:
        for number in range(channels):
            self._make(number)

    def listen_many(self) -> None:
        self.run(Worker(_many).run())

    def _make(self, number: int) -> None:
        made = dataclasses.make_dataclass(
            f"Channel{number}", [("sent", int), ("number", int)], bases=(Channel,)
        )
        made.__module__ = __name__
        _many.append(made)
        expected = number

        async def handle(sent: int, number: int) -> None:
            self.record.astray += number != expected
            self.record.note(sent)

        listener(made)(handle)

    async def asend(self, kind: str, wake: str = "notify") -> None:
        if kind == "trigger":
            await models.Message.objects.acreate(sent=now())
        else:
            channel = channels.Polled if wake == "poll" else _CHANNELS[kind]
            await asend(channel(sent=now()))

    async def afill(self, rows: int) -> None:
        for begin in range(0, rows, CHUNK):
            count = min(CHUNK, rows - begin)
            await anotify_many([channels.Stored(sent=0)] * count)

    async def adrain(self) -> None:
        worker = Worker([channels.Stored])
        await worker.run(batch=True)
        await worker.stop()


_many: list[Any] = []
