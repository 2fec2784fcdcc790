"""Channels whose listeners raise what ends a process, and what cannot be told."""

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from django.db import transaction

from pgbackend.pubsub import Channel, listener

from .models import Effect


@dataclass
class FatalPlain(Channel):
    """*trick* is the name of what the listener does after its effect; "": nothing."""

    number: int
    trick: str = ""


@dataclass
class FatalPlainSync(FatalPlain):
    pass


@dataclass
class Fatal(FatalPlain):
    """The same in rows."""

    lock_notifications = True
    retries = 0


@dataclass
class FatalSync(Fatal):
    pass


@dataclass
class FatalLeased(Fatal):
    lease = 30.0


class Untold(Exception):
    """Neither its text nor its representation can be had."""

    def __init__(self, kind: type[BaseException] = RuntimeError) -> None:
        self.kind = kind

    def __str__(self) -> str:
        raise self.kind("no text")

    __repr__ = __str__


class Argument:
    def __repr__(self) -> str:
        raise KeyboardInterrupt


class Endless(Exception):
    """Its text is endless."""

    def __str__(self) -> str:
        return str(self)


class Noted(Exception):
    @property
    def __notes__(self) -> NoReturn:
        raise RuntimeError("no notes")


def raise_(error: BaseException) -> Callable[[], Any]:
    def trick() -> None:
        raise error

    return trick


def caused() -> None:
    raise ValueError("from another") from Untold(KeyboardInterrupt)


def hook() -> None:
    transaction.on_commit(raise_(KeyboardInterrupt()))
    transaction.on_commit(raise_(Untold(SystemExit)))
    raise ValueError


async def child(kind: type[BaseException]) -> None:
    async def fail() -> None:
        raise kind("a child")

    await asyncio.gather(fail(), asyncio.sleep(1))


async def orphan(kind: type[BaseException]) -> None:
    asyncio.get_running_loop().call_soon(raise_(kind("a callback")))
    await asyncio.sleep(0.01)
    raise ValueError


tricks: dict[str, Callable[[], Any]] = {
    "interrupt": raise_(KeyboardInterrupt("of its own")),
    "exit": lambda: sys.exit(0),
    "exit-text": lambda: sys.exit("no more"),
    "untold": raise_(Untold()),
    "untold-interrupt": raise_(Untold(KeyboardInterrupt)),
    "untold-exit": raise_(Untold(SystemExit)),
    "argument": lambda: raise_(KeyError(Argument()))(),
    "endless": raise_(Endless()),
    "noted": raise_(Noted()),
    "caused": caused,
    "hook": hook,
    "long": lambda: raise_(ValueError("x" * 50_000_000))(),
}
async_tricks: dict[str, Callable[[], Any]] = {
    "child-exit": lambda: child(SystemExit),
    "child-interrupt": lambda: child(KeyboardInterrupt),
    "callback-exit": lambda: orphan(SystemExit),
    "callback-interrupt": lambda: orphan(KeyboardInterrupt),
}


@listener(Fatal)
@listener(FatalLeased)
@listener(FatalPlain)
async def fatal(number: int, trick: str) -> None:
    await Effect.objects.acreate(number=number)
    if trick in tricks:
        tricks[trick]()
    elif trick in async_tricks:
        await async_tricks[trick]()


@listener(FatalSync)
@listener(FatalPlainSync)
def fatal_sync(number: int, trick: str) -> None:
    Effect.objects.create(number=number)
    if trick in tricks:
        tricks[trick]()
