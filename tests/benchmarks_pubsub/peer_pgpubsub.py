"""django-pgpubsub: `listen` in one process, and `listen --recover` for the drain."""

import dataclasses
from typing import Any, ClassVar

import django
from django.core.management import call_command
from django.db import connection

from tests.benchmarks_pubsub.peer import Peer as Base
from tests.benchmarks_pubsub.record import Record, now

django.setup()

from pgpubsub import Channel, listener, notify  # noqa: E402
from pgpubsub.listen import (  # noqa: E402
    listen,
    listen_to_channels,
    process_notifications,
    process_stored_notifications,
)

from tests.benchmarks_pubsub.site_pgpubsub import channels, models  # noqa: E402

_CHANNELS = {
    "plain": channels.Plain,
    "stored": channels.Stored,
    "trigger": channels.Inserted,
}


class Peer(Base):
    """Its own channels are stored by triggers only: see the README here."""

    tables: ClassVar[tuple[str, ...]] = ("pgpubsub_notification",)
    kinds: ClassVar[tuple[str, ...]] = ("plain", "trigger")
    writes: ClassVar[str] = "trigger"

    def __init__(self, dsn: str, record: Record, **options: Any) -> None:
        super().__init__(dsn, record, **options)
        channels.handle[0] = record.note

    def prepare(self) -> None:
        call_command("migrate", verbosity=0, run_syncdb=True)
        call_command("pgtrigger", "install", verbosity=0)

    def open(self, connections: int = 2) -> None:
        connection.ensure_connection()

    def listen(self, kind: str) -> None:
        listen([_CHANNELS[kind]], autorestart_on_failure=False)

    def wire(self, number: int = 0) -> tuple[str, str]:
        channel = _many[number] if _many else channels.Plain
        fields = ', "number": ' + f"{number}" if _many else ""
        return channel.listen_safe_name(), '{"kwargs": {"sent": %s' + fields + "}}"

    def declare(self, channels: int) -> None:
        for number in range(channels):
            self._make(number)

    def listen_many(self) -> None:
        listen(_many, autorestart_on_failure=False)

    def _make(self, number: int) -> None:
        made = dataclasses.make_dataclass(
            f"Channel{number}", [("sent", int), ("number", int)], bases=(Channel,)
        )
        made.__module__ = __name__
        _many.append(made)
        expected = number

        def handle(sent: int, number: int) -> None:
            self.record.astray += number != expected
            self.record.note(sent)

        listener(made)(handle)

    def send(self, kind: str, wake: str = "notify") -> None:
        if kind == "trigger":
            models.Message.objects.create(sent=now())
        else:
            notify(_CHANNELS[kind], sent=now())

    def fill(self, rows: int) -> None:
        # Its own `notify` stores a channel's path, under which its worker does not look.
        name = channels.Stored.listen_safe_name()
        self.sql(
            "INSERT INTO pgpubsub_notification (channel, payload)"
            f" SELECT '{name}', '{{\"kwargs\": {{\"sent\": 0}}}}'::jsonb"
            f" FROM generate_series(1, {rows})"
        )

    def drain(self) -> None:
        # As `listen --recover` begins.
        wrapper = listen_to_channels([channels.Stored])
        process_stored_notifications([channels.Stored])
        process_notifications(wrapper)
        wrapper.stop()


_many: list[Any] = []
