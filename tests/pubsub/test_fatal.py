"""Listeners that raise what ends a process, or what cannot be told: all others go on."""

import os
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

from pgbackend.pubsub import Notification, anotify_many, notify_many
from pgbackend.pubsub.excerpts import error_text, excerpt
from tests.pubsub.site import fatal
from tests.pubsub.site.models import Effect
from tests.support.limits import PATIENCE
from tests.support.pubsub import Listen, until, wait_for, working
from tests.support.script import ROOT

from .test_worker import counted

STORED = {
    fatal.Fatal: {**fatal.tricks, **fatal.async_tricks},
    fatal.FatalLeased: {**fatal.tricks, **fatal.async_tricks},
    fatal.FatalSync: fatal.tricks,
}
PLAIN = {
    fatal.FatalPlain: {**fatal.tricks, **fatal.async_tricks},
    fatal.FatalPlainSync: fatal.tricks,
}
LAST = 1000


def effects() -> Counter[int]:
    return Counter(Effect.objects.values_list("number", flat=True))


@pytest.mark.process
@pytest.mark.parametrize(
    ("settings", "loop"),
    [
        (None, "asyncio"),
        pytest.param(None, "uvloop", marks=pytest.mark.load),
        pytest.param("tests.pubsub.site.settings_django", "asyncio", marks=pytest.mark.load),
    ],
)
def test_worker_goes_on(settings: str | None, loop: str) -> None:
    """Each row whose listener raises such a thing is dead and says why; all others are handled."""
    names = [channel.name() for channel in (*STORED, *PLAIN)]
    arguments = ("--channels", *names, "--loop", loop)
    with Listen(*arguments, settings=settings) as listen:
        wait_for(lambda: "listening to" in listen.text())
        for channel, tricks in (STORED | PLAIN).items():
            notify_many([channel(number, trick) for number, trick in enumerate(tricks)])
            notify_many([channel(LAST)])
        wait_for(lambda: effects()[LAST] == 5)
        rows = Notification.objects.exclude(state="dead")
        wait_for(lambda: listen.process.poll() is not None or not rows.exists())
        listen.process.send_signal(signal.SIGTERM)
        assert listen.code() == 0, listen.text()[-3000:]
    assert Notification.objects.count() == sum(map(len, STORED.values()))
    dead = Notification.objects.get(
        channel=fatal.Fatal.listen_name(), payload__kwargs__trick="interrupt"
    )
    assert dead.last_error.endswith("KeyboardInterrupt: of its own")


INTERRUPTED = """
import asyncio, os, signal, sys
import django
django.setup()
from pgbackend.pubsub.worker import Worker
from tests.pubsub.site import fatal

def interrupt():
    # As a terminal does for Ctrl-C; asyncio.run() cancels at the first, and raises at the second.
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)

fatal.tricks["signal"] = interrupt
try:
    asyncio.run(Worker([fatal.FatalSync]).run())
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.process
def test_ctrl_c() -> None:
    """Ctrl-C ends a worker whose process leaves SIGINT to Python, and its rows are ready again."""
    notify_many([fatal.FatalSync(1, "signal"), fatal.FatalSync(2)])
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.stdout == "interrupted\n", done.stderr
    assert list(Notification.objects.values_list("state", "attempts")) == [("ready", 0)] * 2
    assert not Effect.objects.exists()


def chain(length: int) -> BaseException:
    error = ValueError("the first")
    for number in range(length):
        following = ValueError(f"number {number}")
        following.__context__ = error
        error = following
    return error


def deep(depth: int) -> None:
    if depth:
        deep(depth - 1)
    raise ValueError("deep")


def raised(depth: int) -> BaseException:
    with pytest.raises(ValueError, match="deep") as caught:
        deep(depth)
    return caught.value


def noted() -> BaseException:
    error = ValueError("with a note")
    error.add_note("n" * 50_000_000)
    return error


class Liar(Exception):
    """Its causes cannot be had."""

    @property
    def __cause__(self) -> NoReturn:  # type: ignore[override]
        raise ValueError


nested: list[Any] = []
nested.append(nested)


@pytest.mark.parametrize(
    ("make", "end"),
    [
        (lambda: ValueError("x" * 50_000_000), "ValueError: xxx"),
        (lambda: ValueError("x" * 50_000_000, 2), "ValueError: 'xxx"),
        (lambda: KeyError("x" * 50_000_000), "KeyError: xxx"),
        (lambda: ValueError(["x"] * 5_000_000), "ValueError: list of 5,000,000: 'x', 'x'"),
        (lambda: ValueError(dict.fromkeys(range(1_000_000))), "dict of 1,000,000: (0, None), (1"),
        (lambda: ValueError(b"x" * 50_000_000), "ValueError: b'xxx"),
        (lambda: ValueError(10**1_000_000), "ValueError: <its text cannot be had: ValueError>"),
        (lambda: ValueError(nested), "ValueError: (((..."),
        (lambda: chain(20_000), "ValueError: number 19999"),
        (lambda: ExceptionGroup("all", [ValueError(n) for n in range(100_000)]), "- ValueError: 4"),
        (lambda: raised(900), "ValueError: deep"),
        (noted, "'nnn"),
        (lambda: Liar("a lie"), "Liar: a lie"),
        (fatal.Untold, "Untold: <its text cannot be had: RuntimeError>"),
        (fatal.Endless, "Endless: <its text cannot be had: RecursionError>"),
    ],
)
def test_excerpt(make: Callable[[], BaseException], end: str) -> None:
    """What would take long to tell, or cannot be told, is told in short."""
    error = make()
    began = time.perf_counter()
    text = error_text(error)
    # To format 50 MB takes seconds.
    assert time.perf_counter() - began < 0.5
    assert len(text) < 50_000
    assert end in text
    assert type(excerpt(error)).__name__ == type(error).__name__


def test_what_is_short_is_told_as_it_is() -> None:
    """Any other exception is told as Python tells it."""
    for error in (ValueError("short", [1]), KeyError("k"), raised(3), chain(3), SystemExit(2)):
        assert excerpt(error) is error
        assert error_text(error) == "".join(traceback.format_exception(error)).strip()
    group = ExceptionGroup("several", [ValueError(1), ExceptionGroup("more", [KeyError(2)])])
    assert excerpt(group) is group


async def test_log(caplog: pytest.LogCaptureFixture) -> None:
    """Nor is a long text logged."""
    await anotify_many([fatal.Fatal(1, "long"), fatal.FatalLeased(2, "long")])
    async with working(fatal.Fatal, fatal.FatalLeased, fatal.FatalPlain) as worker:
        await anotify_many([fatal.FatalPlain(3, "long"), fatal.Fatal(4)])
        await until(counted(worker, dead=2, failed=1, handled=2), worker)
    assert 4_000 < len(caplog.text) < 100_000
    assert "ValueError: xxx" in caplog.text
