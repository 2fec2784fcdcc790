"""The service's side of a queue: many messages at once on one event loop, the urgent ones first."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from asyncio import AbstractEventLoop, PriorityQueue
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from functools import partial
from importlib import import_module
from typing import NamedTuple, Protocol

from django.db import close_old_connections, connections

from ...wrapper.attributes import BackendWrapper
from ...wrapper.dispatch import bridged

logger = logging.getLogger("pgbackend.rpc")


class Handle(Protocol):
    """Takes the text of a message, returns that of its answer, and raises nothing."""

    def __call__(self, wire: str, *, redelivered: bool) -> str: ...


# How many messages a process answers at once.
CONCURRENCY = 20

# How long `stop` waits for what is being answered, seconds.
GRACEFUL_TIMEOUT = 30.0


# What is awaited with an answer, None: there is none, as where the service stops.
Done = Callable[[str | None], Awaitable[None]]


def handle_of_service() -> Handle:
    """Return what answers the messages of this project; those that wait for changes it refuses."""
    # The server's room is no dependency of the transports: clients use them, too.
    handle: Handle = partial(import_module("pgbackend.rpc.server.running").handle, waits=False)
    return handle


class _Job(NamedTuple):
    """A message that waits for its turn: *rank* is 0 for urgent ones, 1 for others."""

    rank: int
    number: int
    wire: str
    redelivered: bool
    done: Done


class Serving:
    """Answers messages by *handle* on an event loop in a thread of its own.

    Where a database is of this backend, *handle* runs bridged, and waits without holding the loop;
    elsewhere in threads. At most *concurrency* messages are answered at once.
    """

    def __init__(self, handle: Handle, concurrency: int = CONCURRENCY) -> None:
        self.concurrency = concurrency
        self._handle = handle
        self._numbers = itertools.count()
        self._queue: PriorityQueue[_Job]
        self._loop: AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._threads: ThreadPoolExecutor | None = None
        # What is awaited at the end, on the loop.
        self.closing: Callable[[], Awaitable[None]] | None = None
        # How many messages wait or are being answered; what `stop` waits for.
        self._open = 0
        self._changed = threading.Condition()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._open} open, {self.concurrency} at once>"

    def start(self) -> None:
        """Start the thread; do nothing if it runs."""
        if self._thread is not None:
            return
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._run(ready)), name="rpc-serve", daemon=True
        )
        self._thread.start()
        ready.wait()

    def submit(self, wire: str, done: Done, *, urgent: bool, redelivered: bool) -> None:
        """Answer *wire* as soon as it has its turn, and await *done*; from any thread.

        *redelivered*: the broker may have given it to a worker before.
        """
        assert self._loop is not None
        with self._changed:
            self._open += 1
        job = _Job(0 if urgent else 1, next(self._numbers), wire, redelivered, done)
        self._loop.call_soon_threadsafe(self._queue.put_nowait, job)

    def stop(self, seconds: float = GRACEFUL_TIMEOUT) -> bool:
        """Wait up to *seconds* for what is open, then end; return whether all was answered."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return True
        with self._changed:
            complete = self._changed.wait_for(lambda: not self._open, seconds)
        self._loop = self._thread = None
        loop.call_soon_threadsafe(self._ended.set)
        thread.join()
        return complete

    async def _run(self, ready: threading.Event) -> None:
        self._loop = loop = asyncio.get_running_loop()
        self._queue = PriorityQueue()
        self._ended = asyncio.Event()
        if not _is_bridged():
            self._threads = ThreadPoolExecutor(self.concurrency, thread_name_prefix="rpc-serve")
        # A context for each: what the work on one message sets there, no other sees.
        self._tasks = [
            loop.create_task(self._serve(), context=Context()) for _ in range(self.concurrency)
        ]
        ready.set()
        await self._ended.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)
        if self.closing is not None:
            await self.closing()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
            self._threads = None

    async def _serve(self) -> None:
        while True:
            job = await self._queue.get()
            answer = None
            # A task of its own: what the work leaves in its context or its task ends with it.
            work = asyncio.get_running_loop().create_task(self._answer(job), context=Context())
            try:
                answer = await work
            except asyncio.CancelledError:
                work.cancel()
                await asyncio.wait([work])
                if self._ended.is_set():
                    raise
            except Exception:
                # `handle` answers all failures itself.
                logger.exception("a message was not answered")
            finally:
                await self._finish(job, answer)

    async def _answer(self, job: _Job) -> str:
        if self._threads is None:
            return await bridged(self._handle)(job.wire, redelivered=job.redelivered)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, _in_thread, self._handle, job)

    async def _finish(self, job: _Job, answer: str | None) -> None:
        try:
            await job.done(answer)
        except Exception:
            logger.exception("an answer was not sent")
        with self._changed:
            self._open -= 1
            self._changed.notify_all()


def _is_bridged() -> bool:
    """Return whether a database is of this backend, and runs on the loop."""
    wrappers = [connections[alias] for alias in connections]
    return any(isinstance(each, BackendWrapper) and each.bridge_enabled for each in wrappers)


def _in_thread(handle: Handle, job: _Job) -> str:
    # As Django does at the begin and the end of a request.
    close_old_connections()
    try:
        return handle(job.wire, redelivered=job.redelivered)
    finally:
        close_old_connections()
