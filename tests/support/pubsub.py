"""Workers of pubsub that run beside a test, and waits for what they do."""

import asyncio
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pgbackend.pubsub.channels import BaseChannel
from pgbackend.pubsub.worker import Worker
from tests.pubsub.site.models import Effect
from tests.support import listening
from tests.support.limits import AT_ONCE
from tests.support.logged import Logged
from tests.support.script import ROOT


@asynccontextmanager
async def working(*channels: type[BaseChannel], **options: Any) -> AsyncIterator[Worker]:
    """Run a worker for *channels* that listens already; it has to end with the block in time."""
    worker = Worker(channels, **options)
    task = asyncio.create_task(worker.run())
    await asyncio.sleep(0)
    try:
        await worker.listening(AT_ONCE)
        yield worker
    finally:
        in_time = await worker.stop(AT_ONCE)
        await asyncio.wait([task], timeout=AT_ONCE)
        assert task.done(), task
        assert not task.exception(), task
    assert in_time, worker


async def until(condition: Callable[[], Any], what: object = None) -> None:
    """Wait until *condition*, which may return an awaitable, holds; fail after AT_ONCE."""
    async with asyncio.timeout(AT_ONCE):
        try:
            while True:
                found = condition()
                if await found if asyncio.iscoroutine(found) else found:
                    return
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            print("waited for", what)
            raise


async def effects() -> list[int]:
    """Return the numbers of the notifications whose effects were committed, sorted."""
    return [
        each async for each in Effect.objects.order_by("number").values_list("number", flat=True)
    ]


_forking = multiprocessing.get_context("forkserver")
_forking.set_forkserver_preload(["tests.support.listening"])


class _Forked:
    """A process of the fork server, with the part of `subprocess.Popen` that tests use."""

    def __init__(self, arguments: tuple[str, ...], log: str) -> None:
        self._process = _forking.Process(target=listening.listen, args=(arguments, log))
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid
        self.kill = self._process.kill

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self, seconds: float | None = None) -> int:
        self._process.join(seconds)
        if self._process.exitcode is None:
            raise TimeoutError(f"listen, process {self.pid}, has not ended within {seconds} s")
        return self._process.exitcode


class Listen(Logged):
    """A process with ``manage.py listen``.

    It is forked from one that has set Django up, unless *settings* are named: those are for a new
    Python.
    """

    def __init__(self, *arguments: str, settings: str | None = None) -> None:
        self.arguments = arguments
        self.settings = settings

    def __enter__(self) -> "Listen":
        self.log = tempfile.NamedTemporaryFile("r+")  # closed with the block
        if self.settings is None:
            self.process = _Forked(self.arguments, self.log.name)
            return self
        self.process = subprocess.Popen(
            [sys.executable, "-m", "django", "listen", *self.arguments],
            env={**os.environ, "DJANGO_SETTINGS_MODULE": self.settings, "PYTHONPATH": str(ROOT)},
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )
        return self

    def code(self) -> int:
        """Wait for the end, and return the exit code."""
        return self.process.wait(AT_ONCE)

    def children(self) -> list[int]:
        """Return the process ids of the children."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return list(map(int, path.read_text().split()))


def wait_for(condition: Callable[[], Any]) -> Any:
    """Wait until *condition* holds, and return its value; fail after AT_ONCE."""
    deadline = time.monotonic() + AT_ONCE
    while not (found := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"{condition} did not hold within {AT_ONCE:g} s")
        time.sleep(0.02)
    return found


def is_alive(pid: int) -> bool:
    """Return whether a process runs; one that has ended and is waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
