"""Reads by primary key: those of one queryset that are gathered are one statement.

Django makes, compiles and reads a query for each ``get(pk=...)``. Several of them on one queryset
are one query here, ``filter(pk__in=...)``, whose rows are given to the futures. That is done where
the results cannot be told from those of Django: for querysets of one table and Django's own
methods, integer keys, instances as rows, no locks; and where nobody looks at statements.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.db import connections
from django.db.models import IntegerField, Manager, Model, QuerySet
from django.db.models.query import ModelIterable
from django.db.models.sql import Query

from ..sql.instrumented import may_skip_cursors
from ..sql.select_lists import selects_all_columns
from ..wrapper.attributes import BackendWrapper
from .calls import Call, future_of
from .result import Future

# Futures by the keys of the rows that they are of.
Wanted = dict[int, Future[Any]]


class Read(Call):
    """The call of a statement that reads the rows of several futures."""

    __slots__ = ()

    def aliases(self) -> set[str | None]:
        """Return the alias of the queryset."""
        return {self.args[0].db}


def merged(futures: Iterable[Future[Any]], failed: list[Future[Any]]) -> list[Future[Any]]:
    """Return what to run instead of *futures*, which it ends.

    Those whose rows are missing are added to *failed*.
    """
    found: list[Future[Any]] = []
    # The reads of each queryset or manager, and those of keys that another one is of already.
    reads: dict[int, tuple[Any, Wanted]] = {}
    for future in futures:
        call = future.call
        key = _key_of(call) if isinstance(call, Call) else None
        if key is None:
            found.append(future)
            continue
        subject = call.function.__self__  # type: ignore[union-attr]  # of a method
        _, wanted = reads.setdefault(id(subject), (subject, {}))
        if wanted.setdefault(key, future) is not future:
            found.append(future)
    for subject, wanted in reads.values():
        queryset = subject.all()
        if len(wanted) > 1 and _is_plain(queryset) and _fit(queryset, wanted):
            read = future_of(Read(_read, (queryset, wanted, failed), {}))
            read.claim()
            found.append(read)
        else:
            found += wanted.values()
    return found


def _key_of(call: Call) -> int | None:
    """Return the key of a ``get(pk=...)`` that may be a part of another statement, or None."""
    method = call.function
    if call.args or len(call.kwargs) != 1 or getattr(method, "__name__", "") != "get":
        return None
    key = call.kwargs.get("pk")
    subject = getattr(method, "__self__", None)
    is_djangos = (isinstance(subject, Manager) and type(subject).get is Manager.get) or (
        isinstance(subject, QuerySet) and type(subject).get is QuerySet.get
    )
    return key if is_djangos and type(key) is int else None


def _is_plain(queryset: Any) -> bool:
    """Return whether rows of *queryset* are instances of one table, read as Django reads them."""
    query, model, cls = queryset.query, queryset.model, type(queryset)
    field = model._meta.pk
    wrapper = connections[queryset.db]
    return (
        type(query) is Query
        and queryset._iterable_class is ModelIterable
        and not queryset._prefetch_related_lookups
        and selects_all_columns(query)
        and query.can_filter()
        and not (query.distinct or query.combinator or query.select_for_update)
        and query.group_by is None
        and cls.filter is QuerySet.filter
        and cls.__iter__ is QuerySet.__iter__
        and cls.order_by is QuerySet.order_by
        and model.from_db.__func__ is Model.from_db.__func__
        and isinstance(field, IntegerField)
        and type(field).__module__ == "django.db.models.fields"
        and isinstance(wrapper, BackendWrapper)
        and not wrapper.queries_logged
        and not wrapper.execute_wrappers
        and may_skip_cursors(wrapper)
    )


def _fit(queryset: Any, wanted: Wanted) -> bool:
    """Return whether the keys are in the range of their column."""
    kind = queryset.model._meta.pk.get_internal_type()
    lowest, highest = connections[queryset.db].ops.integer_field_range(kind)
    return bool(lowest <= min(wanted) and max(wanted) <= highest)


def _read(queryset: Any, wanted: Wanted, failed: list[Future[Any]]) -> None:
    """Read the rows of *wanted*, and end its futures."""
    model = queryset.model
    try:
        rows = {row.pk: row for row in queryset.filter(pk__in=list(wanted)).order_by()}
    except BaseException as error:
        for future in wanted.values():
            if isinstance(error, Exception):
                failed.append(future)
                future.set_exception(error)
            else:
                future.set_cancelled()
        if isinstance(error, Exception):
            return
        raise
    for key, future in wanted.items():
        if key in rows:
            future.set_result(rows[key])
        else:
            failed.append(future)
            # In Django's words.
            words = f"{model._meta.object_name} matching query does not exist."
            future.set_exception(model.DoesNotExist(words))
