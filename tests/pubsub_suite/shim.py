"""What django-pgpubsub's tests import: ``pgpubsub``, with ``pgpubsub.listen`` for tests alone.

Its tests listen, handle what they heard, and look, step by step and in one thread. So a listening
connection of this module takes the place of Django's own. `process_notifications` has a `Worker`
handle what is stored, and for plain notifications calls what the worker calls.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Iterable
from types import ModuleType
from typing import Any

import psycopg

import pgbackend.pubsub.as_pgpubsub as as_pgpubsub
from pgbackend import await_bridged, is_bridged

BARRIER = "pgpubsub_suite"

# The connections that a test has opened; the runner closes them when it ends.
opened: list[ListeningConnection] = []

# Whether `listen` goes on; the tests set it to False in `pgpubsub.listen`.
POLL = True


class ListeningConnection:
    """What was heard is in `notifies`, as in django-pgpubsub's wrapper of a connection."""

    def __init__(self, names: Iterable[str]) -> None:
        from django.db import connection

        parameters = connection.get_connection_params()
        parameters = {
            key: parameters[key] for key in ("dbname", "user", "password", "host", "port")
        }
        self.connection = psycopg.connect(**parameters, autocommit=True)
        for name in (BARRIER, *names):
            self.connection.execute(f"LISTEN {name}".encode())
        self._heard: list[Any] = []
        opened.append(self)

    @property
    def notifies(self) -> list[Any]:
        """All that was sent until now.

        The server tells of commits in their order: when a notification of our own is there, those
        before it are.
        """
        self.connection.execute(f"NOTIFY {BARRIER}".encode())
        for each in self.connection.notifies():
            if each.channel == BARRIER:
                break
            self._heard.append(each)
        return self._heard

    @notifies.setter
    def notifies(self, value: list[Any]) -> None:
        assert self.notifies is not None
        self._heard = value

    def poll(self) -> None:
        """Do nothing: `notifies` asks."""

    def stop(self) -> None:
        """Close the connection."""
        self.connection.close()


def listen_to_channels(channels: Any = None) -> ListeningConnection:
    """Listen to *channels*, by default all."""
    from pgbackend.pubsub.channels import select

    return ListeningConnection(
        name for channel in select(channels) for name in channel.listen_names()
    )


def process_notifications(connection: ListeningConnection) -> None:
    """Have what was heard handled."""
    from pgbackend.pubsub.channels import registered

    heard = list(connection.notifies)
    connection.notifies = []
    for each in heard:
        (channel,) = [found for found in registered() if each.channel in found.listen_names()]
        if channel.lock_notifications:
            _wait(_handle_stored(channel))
        else:
            _wait(_handle_plain(channel, each.payload))


def listen(channels: Any = None, recover: bool = False) -> None:
    """Handle what is stored, and no more: the tests set `POLL` to False."""
    from pgbackend.pubsub.channels import select

    assert not sys.modules["pgpubsub.listen"].POLL
    assert recover
    for channel in select(channels):
        if channel.lock_notifications:
            _wait(_handle_stored(channel))


async def _handle_stored(channel: Any) -> None:
    from pgbackend.pubsub.worker import Worker

    worker = Worker([channel])
    await worker.run(batch=True)
    await worker.stop()


async def _handle_plain(channel: Any, payload: str) -> None:
    from pgbackend.pubsub.handling import call_for_plain
    from pgbackend.pubsub.running import running_for
    from pgbackend.pubsub.sending import database

    alias = database(channel)
    running = running_for(alias, 1)
    try:
        for error in await running.run(call_for_plain, running, channel, payload, alias):
            raise error
    finally:
        running.close()


def _wait(coroutine: Coroutine[Any, Any, None]) -> None:
    if is_bridged():
        await_bridged(coroutine)
    else:
        asyncio.run(coroutine)


def install(sources: str) -> None:
    """Let ``pgpubsub.tests`` be imported from *sources*, the wheel's folder, and no more of it."""
    package = sys.modules["pgpubsub"]
    assert isinstance(package, as_pgpubsub.AliasModule)
    package.__path__ = [f"{sources}/pgpubsub"]
    module = ModuleType("pgpubsub.listen", __doc__)
    module.POLL = POLL  # type: ignore[attr-defined]
    for function in (listen, listen_to_channels, process_notifications):
        setattr(module, function.__name__, function)
    sys.modules["pgpubsub.listen"] = module
    package.listen = module  # type: ignore[attr-defined]
