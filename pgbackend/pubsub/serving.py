"""A worker as the main work of a process: until a signal, its parent's end, or the end of its work.

The first SIGTERM or SIGINT lets what is being handled end, for a bounded time. The second ends it
at once. Whatever holds the event loop, the process ends.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import threading
from asyncio import AbstractEventLoop, Event
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import time
from types import FrameType
from typing import Any

from .excerpts import excerpt
from .handling import may_be_ctrl_c
from .worker import GRACEFUL_TIMEOUT, Worker

logger = logging.getLogger("pgbackend.pubsub")

# The exit codes of `listen`. 1 is an error that is told, 2 a wrong argument.
FINISHED = 0
FAILED = 1
CANCELLED = 3  # Handlers did not end in time, and their rows were given back.
AT_ONCE = 4  # A second signal, or handlers that could not even be cancelled.

# What asks for the end.
SIGNALS = (signal.SIGTERM, signal.SIGINT)

# How long the end may take after handlers were cancelled, seconds; then the process just ends.
_LAST_RESORT = 5.0

# How often the health file is written, seconds.
HEALTH_INTERVAL = 2.0

# How many channels the log names.
_SHOWN = 20


@dataclass
class Options:
    """How a worker is run; the times are in seconds."""

    batch: bool = False
    graceful_timeout: float = GRACEFUL_TIMEOUT
    health_file: str | None = None
    # A descriptor that becomes readable when the parent process has ended.
    parent_fd: int | None = None
    loop: str = "asyncio"
    # Whether the process ends with the worker: until then signals are the worker's.
    ends_process: bool = False


def run(worker: Worker, options: Options) -> int:
    """Run *worker* in this process, and return the exit code.

    Raise what keeps it from starting.
    """
    with asyncio.Runner(loop_factory=_factory(options.loop)) as runner:
        loop = runner.get_loop()
        work = loop.create_task(_serve(worker, options))
        while True:
            try:
                return loop.run_until_complete(work)
            except (KeyboardInterrupt, SystemExit) as error:
                # Python lets these end a loop, whichever of its tasks raises them.
                if work.done() or (isinstance(error, KeyboardInterrupt) and may_be_ctrl_c()):
                    raise
                logger.error(
                    "a task or callback that a listener has begun raised %s: the worker goes on",
                    type(error).__name__,
                    exc_info=excerpt(error),
                )


def _factory(name: str) -> Callable[[], AbstractEventLoop] | None:
    if name == "uvloop":
        import uvloop

        return uvloop.new_event_loop
    return None


def ignore_signals() -> None:
    """Let no further signal end the process, whose last steps these are: it has its exit code."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class _Signals:
    """Counts the signals to end, and sees to it that the process does."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.count = 0
        self.first = Event()
        self.second = Event()
        self._loop = asyncio.get_running_loop()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        for number in SIGNALS:
            # Not the loop's handlers, which do not run while a handler holds the loop.
            self._before[number] = signal.signal(number, self._on_signal)
        if self.options.parent_fd is not None:
            threading.Thread(target=self._watch_parent, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.options.ends_process:
            return
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.end()

    def _watch_parent(self) -> None:
        assert self.options.parent_fd is not None
        with suppress(OSError):
            os.read(self.options.parent_fd, 1)
        logger.warning("the parent process has ended")
        self.end()

    def end(self) -> None:
        """Do what one more signal asks for; from any thread."""
        self.count += 1
        with suppress(RuntimeError):
            # The loop may be closed by now.
            self._loop.call_soon_threadsafe((self.first if self.count == 1 else self.second).set)
        seconds = self.options.graceful_timeout if self.count == 1 else 0.0
        timer = threading.Timer(seconds + _LAST_RESORT, os._exit, [AT_ONCE])
        timer.daemon = True
        timer.start()


async def _serve(worker: Worker, options: Options) -> int:
    with _Signals(options) as signals:
        work = asyncio.create_task(worker.run(batch=options.batch))
        first = asyncio.create_task(signals.first.wait())
        second = asyncio.create_task(signals.second.wait())
        health = asyncio.create_task(_write_health(worker, options.health_file))
        begin = asyncio.create_task(_tell(worker, options.batch))
        try:
            await asyncio.wait([work, first], return_when=asyncio.FIRST_COMPLETED)
            if work.done() and work.exception() is None:
                logger.info("done: %s", worker.summary)
            else:
                logger.info("ending: %s", worker.summary)
                logger.debug("%r", worker)
            in_time = await _stop(worker, options, second)
            if work.done():
                work.result()
        finally:
            for task in (work, first, second, health, begin):
                task.cancel()
            await asyncio.wait([work, first, second, health, begin])
            if options.health_file is not None:
                _remove(options.health_file)
        if signals.count > 1:
            return AT_ONCE
        return FINISHED if in_time else CANCELLED


async def _tell(worker: Worker, batch: bool) -> None:
    """Log what the worker handles, as soon as it would hear it."""
    names = [channel.name() for channel in worker.channels]
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" * (len(names) > _SHOWN))
    if batch:
        logger.info("handling what is stored of %s", shown)
        return
    # So that the hubs are there.
    await asyncio.sleep(0)
    await worker.listening()
    logger.info("listening to %s", shown)


async def _stop(worker: Worker, options: Options, second: asyncio.Task[Any]) -> bool:
    """Stop *worker* in the time it is given; at once at the *second* signal."""
    stopping = asyncio.create_task(worker.stop(options.graceful_timeout))
    await asyncio.wait([stopping, second], return_when=asyncio.FIRST_COMPLETED)
    if not stopping.done():
        worker.cancel()
    return await stopping


async def _write_health(worker: Worker, path: str | None) -> None:
    """Keep the health file up to date: JSON, with the time it was written at."""
    if path is None:
        return
    while True:
        _write(path, json.dumps({"time": time(), "pid": os.getpid(), **worker.health()}))
        await asyncio.sleep(HEALTH_INTERVAL)


def _write(path: str, text: str) -> None:
    """Put a file with *text* in the place of *path* in one step: who reads it has it whole."""
    new = Path(f"{path}.{os.getpid()}")
    new.write_text(text)
    new.replace(path)


def _remove(path: str) -> None:
    Path(path).unlink(missing_ok=True)
