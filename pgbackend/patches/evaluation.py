"""The evaluation of a queryset that several tasks evaluate at once.

In stock Django one thread evaluates it for all tasks, one after the other. Here each task waits for
the database by itself, and not for another task, which may need a turn or a connection that the
first one has. A task's result becomes the queryset's when it is complete, prefetched objects
included; the first result stays. The functions here become methods of querysets; see `patch`.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from ..fingerprints import fingerprint, is_known

# Django's own prefetch methods, of both kinds of querysets.
_prefetch_methods: list[Any] = []


def fetch_all(self: Any) -> None:
    """Do what ``QuerySet._fetch_all`` does."""
    if self._result_cache is None:
        found = list(self._iterable_class(self))
        if self._prefetch_related_lookups:
            _prefetch(self, found)
        if self._result_cache is None:
            self._result_cache = found
    if self._prefetch_related_lookups and not self._prefetch_done:
        self._prefetch_related_objects()


def fetch_all_raw(self: Any) -> None:
    """Do what ``RawQuerySet._fetch_all`` does."""
    if self._result_cache is None:
        found = list(self.iterator())
        if self._prefetch_related_lookups:
            _prefetch(self, found)
        if self._result_cache is None:
            self._result_cache = found
    if self._prefetch_related_lookups and not self._prefetch_done:
        self._prefetch_related_objects()


def iterating(iterator: Callable[[Any], Iterator[Any]]) -> Callable[[Any], Iterator[Any]]:
    """Return ``RawQuerySet.iterator`` that uses a cursor of its own for each call.

    Django keeps the cursor on the query, where another task would replace it meanwhile.
    """

    @functools.wraps(iterator)
    def patched(self: Any) -> Iterator[Any]:
        alone = _copy(self)
        alone.query = copy.copy(self.query)
        try:
            yield from iterator(alone)
        finally:
            self.query.cursor = alone.query.cursor

    return patched


def _copy(queryset: Any) -> Any:
    """Return a shallow copy; `copy.copy` would evaluate the queryset."""
    twin = object.__new__(type(queryset))
    twin.__dict__.update(queryset.__dict__)
    return twin


def _prefetch(queryset: Any, found: list[Any]) -> None:
    """Give *queryset* the rows *found*, with prefetched objects, unless it has rows already."""
    if queryset._prefetch_done or type(queryset)._prefetch_related_objects not in _prefetch_methods:
        return
    # Django's method works on the cache of its queryset: use a copy that no other task sees.
    alone = _copy(queryset)
    alone._result_cache = found
    alone._prefetch_related_objects()
    if queryset._result_cache is None:
        queryset._result_cache, queryset._prefetch_done = found, True


def patch(module: ModuleType) -> None:
    """Keep tasks that evaluate one queryset at once from disturbing each other. (5.2 to 6.1.)"""
    plain, raw = module.QuerySet, module.RawQuerySet
    for function in (
        plain._fetch_all,
        plain._prefetch_related_objects,
        raw._fetch_all,
        raw._prefetch_related_objects,
        raw.iterator,
    ):
        if not is_known(
            f"{module.__name__}.{function.__qualname__}",
            fingerprint(function),
            "tasks that evaluate one queryset at once may see it without what it prefetches",
        ):
            return
    _prefetch_methods[:] = plain._prefetch_related_objects, raw._prefetch_related_objects
    plain._fetch_all = functools.wraps(plain._fetch_all)(fetch_all)
    raw._fetch_all = functools.wraps(raw._fetch_all)(fetch_all_raw)
    raw.iterator = iterating(raw.iterator)
