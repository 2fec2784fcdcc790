"""``execute_wrapper()`` and the query log where tasks, and threads that joined, share a wrapper.

Django keeps the functions in a list on the wrapper, which child tasks inherit: one that they
add while they run would be called for their parent's and their siblings' statements.

A thread that joined a transaction has a wrapper of its own, but its statements run on the loop's.
Both see them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from .turns import deputy

# The functions added in this context, by database wrapper; outermost first.
_added: ContextVar[dict[object, tuple[Callable[..., Any], ...]]] = ContextVar(
    "pgbackend_execute_wrappers"
)


class Instrumentation:
    """The part of a `DatabaseWrapper` that ``execute_wrapper`` and ``queries`` are about."""

    # Those of the thread, and those that were added to the list itself.
    _execute_wrappers: list[Callable[..., Any]]
    # Statements as Django logs them: a deque.
    _queries_log: Any
    alias: str

    @property
    def execute_wrappers(self) -> list[Callable[..., Any]]:
        """What is called around each statement of the running task, outermost first."""
        added, guest = _added.get({}).get(self), self._guest
        if guest is not None:
            return [*self._execute_wrappers, *(added or ()), *guest._execute_wrappers]
        return [*self._execute_wrappers, *added] if added else self._execute_wrappers

    @execute_wrappers.setter
    def execute_wrappers(self, functions: list[Callable[..., Any]]) -> None:
        self._execute_wrappers = functions

    @contextmanager
    def execute_wrapper(self, wrapper: Callable[..., Any]) -> Iterator[None]:
        """Call *wrapper* around the statements of the block, and of tasks started in it.

        https://docs.djangoproject.com/en/stable/topics/db/instrumentation/
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self._execute_wrappers.append(wrapper)
            try:
                yield
            finally:
                self._execute_wrappers.pop()
            return
        added = _added.get({})
        _added.set({**added, self: (*added.get(self, ()), wrapper)})
        try:
            yield
        finally:
            # Not by token: a block may end in another copy of the context.
            added = _added.get({})
            _added.set({**added, self: added.get(self, ())[:-1]})

    @property
    def _guest(self) -> Any:
        """The wrapper of the thread whose statement runs, if one's does."""
        working = deputy()
        guest = None if working is None else working.wrapper
        return guest if guest is not None and guest.alias == self.alias else None

    @property
    def queries_logged(self) -> bool:
        """Whether the running statement goes into a query log, this one or a thread's."""
        guest = self._guest
        return self._logs or (guest is not None and guest._logs)

    @property
    def _logs(self) -> bool:
        return bool(super().queries_logged)  # type: ignore[misc]  # Django's wrapper

    @property
    def queries_log(self) -> Any:
        """Django's log of statements, and while a thread's runs also the thread's."""
        guest = self._guest
        if guest is None:
            return self._queries_log
        return _Logs([each._queries_log for each in (self, guest) if each._logs])

    @queries_log.setter
    def queries_log(self, log: Any) -> None:
        self._queries_log = log


class _Logs:
    """Several query logs at once, for the statement that Django adds."""

    def __init__(self, logs: list[Any]) -> None:
        self._logs = logs

    def append(self, entry: dict[str, str]) -> None:
        for log in self._logs:
            log.append(entry)
