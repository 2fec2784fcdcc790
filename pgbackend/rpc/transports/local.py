"""The transport into the same process: through the messages, without a network."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from importlib import import_module

from ...bridge.current import is_bridged
from ...futures.result import Future
from ..protocol.errors import Unavailable
from .base import Transport


class LocalTransport(Transport):
    """Answer messages in this process, where and when they are sent.

    *handle* takes a message's text and returns the answer's; None: the service's own
    `server.running.handle`. In threads and in bridged code it runs at once; on an event loop it
    runs in a task of its own, bridged.
    """

    def __init__(self, handle: Callable[[str], str] | None = None) -> None:
        self._handle = handle
        self._tasks: set[asyncio.Task[str]] = set()

    def send(self, wire: str, *, urgent: bool, deadline: float) -> Future[str]:
        """Answer *wire*; *urgent* and *deadline* change nothing, as nothing waits here."""
        handle = self._handle or _served
        loop = _running_loop()
        if loop is None or is_bridged():
            future: Future[str] = Future.pending()
            _end(future, lambda: handle(wire))
            return future
        return self._in_task(handle, wire, loop)

    def send_waiting(self, wire: str, *, deadline: float) -> Future[str]:
        """Answer *wire* in a task of its own, in bridged code too, so that it can be cancelled."""
        loop = _running_loop()
        if loop is None:
            return self.send(wire, urgent=False, deadline=deadline)
        return self._in_task(self._handle or _served, wire, loop)

    def _in_task(
        self, handle: Callable[[str], str], wire: str, loop: asyncio.AbstractEventLoop
    ) -> Future[str]:
        # Not imported above: it needs Django, and *handle* may not.
        from ...wrapper.dispatch import bridged

        task = loop.create_task(bridged(handle)(wire))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        awaited: Future[str] = Future.pending(on_cancel=lambda: _cancel(task))
        task.add_done_callback(lambda task: _take(awaited, task))
        return awaited

    def close(self) -> None:
        """End what still runs."""
        for task in tuple(self._tasks):
            _cancel(task)


def _served(wire: str) -> str:
    """Answer *wire* by the service of this process."""
    # The server's room is no dependency of the transports: another process may have it.
    answer: str = import_module("pgbackend.rpc.server.running").handle(wire)
    return answer


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _cancel(task: asyncio.Task[str]) -> None:
    """Cancel *task*, from whatever thread."""
    loop = task.get_loop()
    if _running_loop() is loop:
        task.cancel()
    elif not loop.is_closed():
        loop.call_soon_threadsafe(task.cancel)


def _take(future: Future[str], task: asyncio.Task[str]) -> None:
    """End *future* as *task* has ended."""
    if task.cancelled():
        future.set_exception(Unavailable("the service stopped before it answered"))
    elif (error := task.exception()) is not None:
        future.set_exception(error)
    else:
        future.set_result(task.result())


def _end(future: Future[str], call: Callable[[], str]) -> None:
    try:
        future.set_result(call())
    except Exception as error:
        future.set_exception(error)
