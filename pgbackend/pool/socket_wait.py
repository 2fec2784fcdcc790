"""Wait for a connection's socket without a registration and a timer for each wait.

psycopg's ``wait_async`` registers the socket for each wait, and sets a timer that checks at
intervals whether the connection was closed. Here a connection stays registered, and the next wait
reuses the timer of the last. No wait relies on the registration alone: see `_Reader`.
"""

from __future__ import annotations

import asyncio
import os
import select
from asyncio import AbstractEventLoop, Future, get_running_loop
from collections.abc import Generator
from contextvars import Context
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import finalize, ref

import psycopg
from psycopg.pq import ConnStatus
from psycopg.waiting import Ready, wait_async

from ..bridge.greenlets import await_future
from ..bridge.loops import calls_from_python, may_run_nested, may_touch_loop

if TYPE_CHECKING:
    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGconn

RV = TypeVar("RV")

# How long a wait may outlast its connection, which another task closed, seconds; as in psycopg.
INTERVAL = 0.1


class SocketWait:
    """The waits for one connection's socket, one at a time, on one event loop."""

    def __init__(self, pgconn: PGconn) -> None:
        self._pgconn = pgconn
        self._closed = False
        self._future: Future[Ready] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._reader: _Reader | None = None

    def until_readable(self) -> Ready:
        """Wait, through the bridge, until something can be read.

        Raise `psycopg.OperationalError` if the connection is closed meanwhile.
        """
        loop = get_running_loop()
        future = self._future = loop.create_future()
        reader = self._reader
        if reader is None or reader.loop is not loop:
            self._unregister()
            self._reader = _Reader(loop, self)
        elif reader.is_called and may_run_nested(loop):
            # The waiting task runs inside the reader's callback. A nested run of the loop could not
            # call the callback again, because its context is already entered: register it anew, in
            # a new context.
            reader.listen()
        elif reader.may_have_ended and reader.is_readable():
            # Wake the task in the loop's next iteration, so that an answer in many parts blocks no
            # other task.
            loop.call_soon(_wake, future)
        if self._timer is None:
            # The timer may outlive the wait: in the task's own context it would keep the task
            # alive.
            self._timer = loop.call_later(INTERVAL, self._check_socket, context=Context())
        try:
            ready: Ready = await_future(future)
            if self._closed:
                # The connection was closed after the wake-up and before the task resumed.
                self._check_open()
            return ready
        finally:
            self._future = None

    async def elsewhere(self, gen: PQGen[RV], interval: float, seconds: float | None) -> RV:
        """Consume *gen* by psycopg's own ``wait_async``, outside the bridge.

        Wait on a duplicate of the file descriptor: if the connection is closed meanwhile, libuv
        would find the number closed, or reused by another connection, and abort the process.
        """
        fd = os.dup(self.socket)
        try:
            return await wait_async(self._while_open(gen), fd, interval, seconds)
        finally:
            os.close(fd)

    def _while_open(self, gen: Generator[Any, Any, RV]) -> Generator[Any, Any, RV]:
        """Consume *gen* while the connection is open: on a closed one, psycopg would read freed
        memory.
        """
        ready = None
        while True:
            self._check_open()
            try:
                state = gen.send(ready)
            except StopIteration as stop:
                result: RV = stop.value
                return result
            ready = yield state

    def _check_open(self) -> None:
        if self._closed:
            raise psycopg.OperationalError("the connection is closed")

    def close(self) -> None:
        """Wake the waiting task with an error: the connection is about to be closed."""
        self._closed = True
        if self._future is not None:
            _fail(self._future)
        self._unregister()

    def _unregister(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def readable(self, *, at_once: bool) -> None:
        """Wake the waiting task, *at_once* or in the loop's next iteration.

        If no task waits, the server has sent something unasked: stop listening.
        """
        future = self._future
        if future is None:
            self._unregister()
        elif not at_once:
            _wake(future)
        elif not future.done():
            # `Future.set_result` alone would resume the task in the loop's next iteration. Before
            # that, the loop would ask the selector once more, and hear again of the data that the
            # task is about to read. ``_callbacks`` is asyncio's private list of the callbacks with
            # their contexts.
            callbacks: Any = future._callbacks
            if callbacks is None or len(callbacks) != 1:
                future.set_result(Ready.R)
                return
            ((callback, context),) = callbacks
            future.remove_done_callback(callback)
            future.set_result(Ready.R)
            context.run(callback, future)

    def _check_socket(self) -> None:
        """Check the connection and its socket directly, independent of the loop's callbacks."""
        self._timer = None
        future, reader = self._future, self._reader
        if future is None or future.done():
            return
        if self._pgconn.status != ConnStatus.OK:
            _fail(future)
        elif reader is not None and reader.is_readable():
            _wake(future)
        else:
            loop = future.get_loop()
            self._timer = loop.call_later(INTERVAL, self._check_socket, context=Context())

    @property
    def socket(self) -> int:
        """The connection's own file descriptor."""
        return self._pgconn.socket


class _Reader:
    """A connection's socket, registered on an event loop.

    The reader uses a duplicate of the file descriptor: when the connection is closed, the number is
    not given to another socket while the loop still listens to it.
    """

    # True while a task runs inside the callback.
    is_called = False

    def __init__(self, loop: AbstractEventLoop, wait: SocketWait) -> None:
        self.loop = loop
        self._fd = fd = os.dup(wait.socket)
        self._poll = poll = select.poll()
        poll.register(fd, select.POLLIN)
        at_once = calls_from_python(loop)
        # libuv reports a socket with an error, such as a reset by the peer, once, and then stops
        # listening to it. Reading what the server sent before the reset takes more than one wait. A
        # selector, as in asyncio's loops, reports such a socket as often as it is asked.
        self.may_have_ended = not at_once
        # The callback holds weak references only, since the loop keeps the callback alive.
        waiting, this = ref(wait), ref(self)

        def readable() -> None:
            wait, reader = waiting(), this()
            if wait is None or reader is None:
                return
            if at_once:
                reader.is_called = True
                try:
                    wait.readable(at_once=True)
                finally:
                    reader.is_called = False
            elif poll.poll(0):
                # The task resumes later, so libuv may call once more after the task has read
                # everything.
                wait.readable(at_once=False)

        self._readable = readable
        self.listen()
        self._finalizer = finalize(self, _unregister_later, loop, fd)
        self._finalizer.atexit = False

    def listen(self) -> None:
        """Register the callback on the loop, in a new context that nothing has entered."""
        self.is_called = False
        Context().run(self.loop.add_reader, self._fd, self._readable)

    def is_readable(self) -> bool:
        """Return whether a read would not block: there is data, the end, or an error."""
        return bool(self._poll.poll(0))

    def close(self) -> None:
        """Unregister the socket from the loop."""
        if self._finalizer.detach() is None:
            return
        if may_touch_loop(self.loop):
            _unregister(self.loop, self._fd)
        else:
            _unregister_later(self.loop, self._fd)


def _wake(future: Future[Ready]) -> None:
    if not future.done():
        future.set_result(Ready.R)


def _unregister(loop: AbstractEventLoop, fd: int) -> None:
    # A closed loop has no readers; uvloop's raises if asked to remove one.
    if not loop.is_closed():
        loop.remove_reader(fd)
    os.close(fd)


def _unregister_later(loop: AbstractEventLoop, fd: int) -> None:
    """Do what `_unregister` does, from any place where the collector may run."""
    if loop.is_closed():
        os.close(fd)
    else:
        loop.call_soon_threadsafe(_unregister, loop, fd)


def _fail(future: Future[Any]) -> None:
    # A closed loop calls no callbacks.
    if not future.done() and not future.get_loop().is_closed():
        future.set_exception(psycopg.OperationalError("the connection is closed"))


def continued(gen: Generator[Any, Any, RV], state: Any) -> Generator[Any, Any, RV]:
    """Return a generator that resumes *gen*, which has yielded *state*."""
    while True:
        ready = yield state
        try:
            state = gen.send(ready)
        except StopIteration as stop:
            result: RV = stop.value
            return result
