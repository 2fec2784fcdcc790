"""What the transports over a network share: a thread that waits for answers, and what is pending.

Whoever sends goes on at once. One thread with an event loop, whatever the number of callers,
receives the answers and resolves their futures.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from asyncio import AbstractEventLoop
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any
from weakref import WeakSet

from ...futures.result import Future
from ..protocol.errors import Unavailable
from .base import Transport
from .pending import Pending

logger = logging.getLogger("pgbackend.rpc")

# How long `close` waits until what the thread does has ended, seconds.
_PATIENCE = 10.0


# All transports of this process.
_transports: WeakSet[ThreadedTransport] = WeakSet()


class ThreadedTransport(Transport):
    """A transport whose answers come in a thread of its own, which the first `send` starts.

    The thread is a daemon: it keeps no process from ending. A process that was forked starts
    another one. A subclass says in `hand_over` how a message is sent; in `serve` what runs as long
    as the thread does.
    """

    name = "rpc"

    def __init__(self) -> None:
        self.pending = Pending()
        self._lock = threading.Lock()
        self._loop: AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._pid = 0
        self._tasks: set[asyncio.Task[None]] = set()
        _transports.add(self)

    def __repr__(self) -> str:
        state = "new" if self._thread is None else "runs"
        return f"<{type(self).__name__} {state} {self.pending!r}>"

    def send(self, wire: str, *, urgent: bool, deadline: float) -> Future[str]:
        """Send *wire*; see `Transport.send`."""
        return self.sent_by(lambda found: self.hand_over(found, wire, urgent, deadline), deadline)

    def sent_by(self, hand_over: Callable[[str], None], deadline: float) -> Future[str]:
        """Return the future of the answer to a message that *hand_over* sends, given its id."""
        with self._lock:
            loop = self._started()
            pending = self.pending
        message_id = pending.new_id()
        future: Future[str] = Future.pending(
            on_cancel=lambda: self._forget_soon(loop, pending, message_id)
        )
        # Before it is handed over: the answer comes through the same loop, so it comes later.
        loop.call_soon_threadsafe(pending.add, message_id, future, deadline)
        hand_over(message_id)
        return future

    def _forget_soon(self, loop: AbstractEventLoop, pending: Pending, message_id: str) -> None:
        # Where the transport was closed meanwhile, its loop is, too.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(self.forget, pending, message_id)

    def forget(self, pending: Pending, message_id: str) -> None:
        """Wait for an answer no longer, as its future was cancelled; called on the loop."""
        pending.forget(message_id)

    def hand_over(self, message_id: str, wire: str, urgent: bool, deadline: float) -> None:
        """Send a message without waiting for it; called in the thread of the caller."""
        raise NotImplementedError

    async def serve(self) -> None:
        """Run on the thread's loop until that is cancelled."""
        raise NotImplementedError

    def call(self, function: Callable[..., object], *args: Any) -> None:
        """Call *function* on the thread's loop soon; do nothing where there is none any more."""
        loop = self._loop
        if loop is not None and self._pid == os.getpid():
            # It may be closed meanwhile.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(function, *args)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run *work* as a task until it ends or the thread does; called on the loop."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.critical("%r no longer receives answers", self, exc_info=error)
            self.pending.trouble = error

    def forked(self) -> None:
        """Forget what belongs to the process that this one was forked from."""

    def close(self) -> None:
        """End the thread and close its connections; another `send` begins anew.

        Futures that wait for an answer end with `Unavailable`.
        """
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
            if loop is None or thread is None or self._pid != os.getpid():
                return
            loop.call_soon_threadsafe(loop.stop)
        thread.join(_PATIENCE)

    def _started(self) -> AbstractEventLoop:
        """Return the loop of the thread, which is started where there is none."""
        if self._loop is not None and self._pid != os.getpid():
            self._loop = None
            self._tasks = set()
            self.pending = Pending()
            self.forked()
        if self._loop is None:
            self._loop = loop = asyncio.new_event_loop()
            self._pid = os.getpid()
            loop.call_soon(lambda: self.spawn(self.serve()))
            self._thread = threading.Thread(
                target=_run, args=(loop, self.pending), name=self.name, daemon=True
            )
            self._thread.start()
        return self._loop


def _forked() -> None:
    """Have new locks in a process that was forked: other threads may have held the old ones."""
    for each in tuple(_transports):
        each._lock = threading.Lock()


os.register_at_fork(after_in_child=_forked)


def _run(loop: AbstractEventLoop, pending: Pending) -> None:
    """Run *loop* until it is stopped; the tasks that are left are cancelled and waited for."""
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        runner.get_loop().run_forever()
        pending.fail_all(Unavailable("the transport was closed"))
