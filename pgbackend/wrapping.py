"""``connection.execute_wrapper()`` where tasks share a wrapper: each has what it inherited.

Django keeps the functions in a list on the wrapper, which child tasks inherit: one that they
add while they run would be called for their parent's and their siblings' statements.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

# The functions added in this context, by database wrapper; outermost first.
_added: ContextVar[dict[object, tuple[Callable[..., Any], ...]]] = ContextVar(
    "pgbackend_execute_wrappers"
)


class ExecuteWrappers:
    """The part of a `DatabaseWrapper` that Django's ``execute_wrapper`` is about."""

    # Those of the thread, and those that were added to the list itself.
    _execute_wrappers: list[Callable[..., Any]]

    @property
    def execute_wrappers(self) -> list[Callable[..., Any]]:
        """What is called around each statement of the running task, outermost first."""
        added = _added.get({}).get(self)
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
