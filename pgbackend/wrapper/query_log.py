"""``connection.queries`` and ``connection.execute_wrapper()`` for requests with several tasks.

Django keeps the log and the functions on the wrapper. But child tasks inherit their parent's
wrapper: a function that one of them adds would be called for its siblings' statements. And each
thread has a wrapper of its own: synchronous middleware would not see the statements of an
asynchronous view, nor asynchronous middleware those of a synchronous view. Statements of a thread
that joined a transaction are executed by the loop's wrapper, and both wrappers see them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, MutableSequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from ..tasks.actors import acting_task, acting_tasks
from ..tasks.request import of_request
from .thread_wrappers import ThreadWrapper

# The functions added in this context, by database wrapper; outermost first.
_added: ContextVar[dict[object, tuple[Callable[..., Any], ...]]] = ContextVar(
    "pgbackend_execute_wrappers"
)
_NONE_ADDED: dict[object, tuple[Callable[..., Any], ...]] = {}


class QueryLogging:
    """The part of a `DatabaseWrapper` for Django's query log and ``execute_wrapper``."""

    alias: str

    # The functions of the thread, and those that were added to the list itself.
    _execute_wrappers: list[Callable[..., Any]]

    _queries_log: deque[dict[str, Any]]

    @property
    def _logging_wrapper(self) -> Any:
        """The wrapper that stands for this one: in a request, also in its threads, the loop's."""
        return of_request.get({}).get(self.alias, self)

    @property
    def _thread_wrapper(self) -> Any:
        """The wrapper of the thread whose statement runs, if that wrapper has a log of its own."""
        working = acting_task()
        if working is None or working.wrapper.alias != self.alias:
            return None
        guest = working.wrapper
        return None if guest._logging_wrapper is self._logging_wrapper else guest

    @property
    def queries_logged(self) -> bool:
        """Whether the running statement is logged, in this wrapper's log or a thread's."""
        logs = bool(super().queries_logged)  # type: ignore[misc]  # Django's wrapper
        if logs or acting_tasks.get() is None:
            return logs
        guest = self._thread_wrapper
        return guest is not None and guest._is_logging

    @property
    def _is_logging(self) -> bool:
        return bool(super().queries_logged)  # type: ignore[misc]  # Django's wrapper

    @property
    def queries_log(self) -> Any:
        """The statements of the request, of all its tasks and threads.

        While a thread's statement runs, return an object that appends to the thread's log, too.
        """
        guest = self._thread_wrapper
        if guest is None:
            return self._logging_wrapper._queries_log
        return _SeveralLogs(
            [each._logging_wrapper._queries_log for each in (self, guest) if each._is_logging]
        )

    @queries_log.setter
    def queries_log(self, log: deque[dict[str, Any]]) -> None:
        self._queries_log = log

    @property
    def execute_wrappers(self) -> MutableSequence[Callable[..., Any]]:
        """The functions called around each statement of the running task, outermost first.

        A function that is appended stays until it is removed, as in Django.
        """
        added = _added.get(_NONE_ADDED)
        if not added and acting_tasks.get() is None:
            return self._execute_wrappers
        functions, guest = added.get(self._logging_wrapper), self._thread_wrapper
        if not functions and guest is None:
            return self._execute_wrappers
        parts = [self._execute_wrappers, _ContextWrappers(self._logging_wrapper)]
        return _ConcatenatedLists(parts if guest is None else [*parts, guest._execute_wrappers])

    @execute_wrappers.setter
    def execute_wrappers(self, functions: list[Callable[..., Any]]) -> None:
        self._execute_wrappers = functions

    def install_execute_wrappers(self, functions: list[Callable[..., Any]]) -> None:
        """Add the functions that receivers of connection_created added for this connection."""
        self._execute_wrappers += [each for each in functions if each not in self._execute_wrappers]

    @contextmanager
    def execute_wrapper(self, wrapper: Callable[..., Any]) -> Iterator[None]:
        """Call *wrapper* around the statements of the block, and of tasks started in it.

        In a request, call it also for statements of threads that the block waits for, whether the
        block is on the loop or in a thread. Source:
        https://docs.djangoproject.com/en/stable/topics/db/instrumentation/
        """
        watched = self._logging_wrapper
        if watched is self and not _on_loop():
            self._execute_wrappers.append(wrapper)
            try:
                yield
            finally:
                self._execute_wrappers.pop()
            return
        added = _ContextWrappers(watched)
        of_thread = None if _on_loop() else ThreadWrapper(wrapper)
        added.append(of_thread or wrapper)
        try:
            yield
        finally:
            if of_thread is not None:
                of_thread.block_left = True
            # Do not reset by token: a block may end in another copy of the context.
            if len(added):
                added.pop()


class _ContextWrappers(MutableSequence[Any]):
    """The functions added in the running context for one wrapper."""

    def __init__(self, watched: Any) -> None:
        self._logging_wrapper = watched

    def _read(self) -> list[Any]:
        return list(_added.get({}).get(self._logging_wrapper, ()))

    def _write(self, functions: list[Any]) -> None:
        _added.set({**_added.get({}), self._logging_wrapper: tuple(functions)})

    def __len__(self) -> int:
        return len(self._read())

    def __getitem__(self, index: Any) -> Any:
        return self._read()[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        functions = self._read()
        functions[index] = value
        self._write(functions)

    def __delitem__(self, index: Any) -> None:
        functions = self._read()
        del functions[index]
        self._write(functions)

    def insert(self, index: int, value: Any) -> None:
        functions = self._read()
        functions.insert(index, value)
        self._write(functions)


class _ConcatenatedLists(MutableSequence[Any]):
    """Several lists as one that can be changed.

    New functions are inserted into the first list, the wrapper's own, which outlasts blocks.
    """

    def __init__(self, parts: list[Any]) -> None:
        self._parts = parts

    def __repr__(self) -> str:
        return repr(list(self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, list | _ConcatenatedLists) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]  # a list has no hash

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def _at(self, index: int) -> tuple[Any, int]:
        """Return the part that contains *index*, and the index within that part."""
        if index < 0:
            index += len(self)
        for part in self._parts:
            if 0 <= index < len(part):
                return part, index
            index -= len(part)
        raise IndexError("execute_wrappers: index out of range")

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return list(self)[index]
        part, index = self._at(index)
        return part[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        part, index = self._at(index)
        part[index] = value

    def __delitem__(self, index: Any) -> None:
        if isinstance(index, slice):
            for each in sorted(range(*index.indices(len(self))), reverse=True):
                del self[each]
            return
        part, index = self._at(index)
        del part[index]

    def insert(self, index: int, value: Any) -> None:
        self._parts[0].insert(index, value)


class _SeveralLogs:
    """Several query logs at once; Django appends the statement to each."""

    def __init__(self, logs: list[Any]) -> None:
        self._logs = logs

    def append(self, entry: dict[str, str]) -> None:
        for log in self._logs:
            log.append(entry)


def _on_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
