"""Gathered calls in a plain thread, without an event loop.

In a transaction of the thread the statements of the calls go together, as `driving` sends them.
Elsewhere the calls run one after another. They always run in the calling thread, on its connection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from contextvars import copy_context
from functools import partial
from typing import Any

from django.db import connections, transaction
from greenlet import GreenletExit, getcurrent

from ..sql.in_threads import ThreadCall, ThreadFace
from ..tasks.state import ConnectionState
from .driving import Driven, Driver


class ThreadDriver(Driver):
    """Drives calls to their ends in a plain thread."""

    def __init__(
        self,
        functions: Iterable[Callable[[], Any]],
        on_end: Callable[[Driven], None],
        *,
        savepoints: bool,
    ) -> None:
        self._faces: dict[Any, ThreadFace] = {}
        # With savepoints each call has a block of its own, and is sent alone.
        own = map(saved, functions) if savepoints else functions
        super().__init__(own, on_end, savepoints=False)

    def _steps(self, function: Callable[[], Any]) -> Any:
        return _Steps(function, self._faces)

    def _depth(self, state: ConnectionState) -> int:
        return len(state.atomic_blocks)

    def _check_turn(self, calls: list[Driven]) -> None:
        """Do nothing: the thread shares its connection with nobody."""


class _Steps:
    """A call in a greenlet of the thread, with the methods of a generator."""

    def __init__(self, function: Callable[[], Any], faces: dict[Any, ThreadFace]) -> None:
        self._call = ThreadCall(partial(_without_stop_iteration, function))
        self._call.faces = faces
        self._call.gr_context = copy_context()

    def send(self, value: Any) -> Any:
        """Let the call go on with *value*; return the statement that it hands over."""
        self._call.parent = getcurrent()
        return self._handed(self._call.switch(value) if self._call else self._call.switch())

    def throw(self, error: BaseException) -> Any:
        """Let the call go on with *error*; return the statement that it hands over."""
        self._call.parent = getcurrent()
        return self._handed(self._call.throw(error))

    def _handed(self, value: Any) -> Any:
        if self._call.dead:
            raise StopIteration(value)
        return value

    def close(self) -> None:
        """Let a call that was begun unwind."""
        if self._call:
            self._call.parent = getcurrent()
            # What it sends meanwhile it sends itself.
            self._call.gathered = False
            self._call.throw(GreenletExit)


def _without_stop_iteration(function: Callable[[], Any]) -> Any:
    """Call *function*; raise RuntimeError for its StopIteration, as coroutines do (PEP 479)."""
    try:
        return function()
    except StopIteration as error:
        raise RuntimeError("a gathered call raised StopIteration") from error


def saved(function: Callable[[], Any]) -> Callable[[], Any]:
    """Return *function* in a block of its own in each transaction of where it is called.

    That includes transactions of databases on other backends.
    """

    def run() -> Any:
        with ExitStack() as blocks:
            for wrapper in connections.all(initialized_only=True):
                if wrapper.in_atomic_block:
                    blocks.enter_context(transaction.atomic(using=wrapper.alias))
            return function()

    return run
