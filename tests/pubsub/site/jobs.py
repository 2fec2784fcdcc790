"""Channels whose listeners do what the notification says; for the tests of delivery.

A listener writes an `Effect` first, so that a test sees what was committed, and how often.
"""

import asyncio
import os
import signal
import time
from dataclasses import dataclass

from django.db import connection

from pgbackend import bridged
from pgbackend.pubsub import Channel, anotify, listener, notify

from .models import Effect

# The numbers that listeners were called with in this process, in their order.
called: list[int] = []

# Numbers of which a listener is running.
running: set[int] = set()


@dataclass
class Job(Channel):
    """The base of the channels: *do* says what the listener does, *number* which one it is."""

    number: int
    do: str = ""
    key: str = ""


@dataclass
class Plain(Job):
    concurrency = 2


@dataclass
class PlainSync(Job):
    pass


@dataclass
class Stored(Job):
    lock_notifications = True
    retries = 2
    backoff = 0.05
    timeout = 5.0


@dataclass
class StoredSync(Stored):
    pass


@dataclass
class Wide(Stored):
    """Several transactions at once."""

    concurrency = 4


@dataclass
class Once(Stored):
    retries = 0


@dataclass
class Brief(Stored):
    timeout = 0.2
    retries = 0


@dataclass
class Patient(Stored):
    timeout = None


@dataclass
class Ordered(Stored):
    ordered_by = "key"
    concurrency = 4
    retries = 5


@dataclass
class Leased(Stored):
    lease = 30.0
    concurrency = 4
    timeout = None


@dataclass
class Short(Leased):
    lease = 1.0


@dataclass
class Polled(Stored):
    wake = "poll"


async def act(number: int, do: str, key: str) -> None:
    """Do what the notification says."""
    called.append(number)
    running.add(number)
    try:
        if do != "nothing":
            await Effect.objects.acreate(number=number, note=key, pid=os.getpid())
        match do.partition(" "):
            case ["fail", _, _]:
                raise ValueError(f"number {number}")
            case ["fail-until", _, attempts]:
                if called.count(number) < int(attempts):
                    raise ValueError(f"number {number}")
            case ["sleep", _, seconds]:
                await asyncio.sleep(float(seconds))
            case ["query", _, seconds]:
                await run_sql(f"SELECT pg_sleep({float(seconds)})")
            case ["sql", _, text]:
                await run_sql(text)
            case ["die", _, _]:
                os.kill(os.getpid(), signal.SIGKILL)
            case ["exit", _, _]:
                raise SystemExit(3)
            case ["cancel", _, _]:
                raise asyncio.CancelledError
            case ["block", _, seconds]:
                time.sleep(float(seconds))  # noqa: ASYNC251  # what not to do
            case ["notify", _, more] if int(more):
                await anotify(Stored, number=number + 1, do=f"notify {int(more) - 1}")
            case _:
                pass
    finally:
        running.discard(number)


async def run_sql(text: str) -> None:
    def execute() -> None:
        with connection.cursor() as cursor:
            cursor.execute(text)

    await bridged(execute)()


def act_sync(number: int, do: str, key: str) -> None:
    """Do what the notification says, by a function."""
    called.append(number)
    if do != "nothing":
        Effect.objects.create(number=number, note=key, pid=os.getpid())
    match do.partition(" "):
        case ["fail", _, _]:
            raise ValueError(f"number {number}")
        case ["swallow", _, _]:
            try:
                Effect(id="no number", number=number).save()
            except Exception:
                Effect.objects.filter(number=number)
        case ["notify", _, more] if int(more):
            notify(StoredSync, number=number + 1, do=f"notify {int(more) - 1}")
        case ["sql", _, text]:
            with connection.cursor() as cursor:
                cursor.execute(text)
        case ["block", _, seconds]:
            time.sleep(float(seconds))
        case ["killed-until", _, attempts]:
            if called.count(number) < int(attempts):
                kill_connection()
                raise ValueError(f"number {number}")
        case _:
            pass


def kill_connection() -> None:
    """Have the server end the connection that the listener is called with.

    The server says that it does before it has: the connection is not closed then.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone()
    other = connection.copy()
    try:
        with other.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s)", [pid])
    finally:
        other.close()


for channel in (Plain, Stored, Wide, Once, Brief, Patient, Ordered, Leased, Short, Polled):
    listener(channel)(act)
for channel in (PlainSync, StoredSync):
    listener(channel)(act_sync)
