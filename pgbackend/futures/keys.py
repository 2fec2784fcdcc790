"""Reads by primary key: those of one queryset that are gathered are one statement.

Django makes, compiles and reads a query for each ``get(pk=...)``. Several of them on one queryset
are one query here, ``filter(pk__in=...)``, whose rows are given to the futures. That is done where
the results cannot be told from those of Django: for querysets of one table and Django's own
methods, filters that fail for no row, integer keys, instances as rows, no locks; and where nobody
looks at statements.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from django.db import Error, connections
from django.db.backends.postgresql.base import Cursor
from django.db.models import IntegerField, Manager, Model, QuerySet
from django.db.models.expressions import Col
from django.db.models.fields import related_lookups
from django.db.models.lookups import Lookup, Regex
from django.db.models.query import ModelIterable
from django.db.models.sql import Query
from django.db.models.sql.where import WhereNode

from ..bridge.current import is_bridged
from ..session.clean import CleanSQL
from ..sql.direct import lease_or_cursor
from ..sql.instrumented import may_skip_cursors
from ..sql.originals import is_djangos
from ..sql.select_lists import selects_all_columns
from ..wrapper.attributes import BackendWrapper
from .calls import Call, future_of
from .recording import CHAINED, ENDS
from .result import Future

# A statement of the ORM leaves the session as it was.
_OWN = CleanSQL()

# Futures by the keys of the rows that they are of.
Wanted = dict[int, Future[Any]]

# Methods of querysets that a read by key does not use: a subclass may have its own.
_UNUSED = (CHAINED | ENDS) - {"all", "filter", "get", "order_by", "using"}

# The attributes of querysets that it may use.
_USED = frozenset(
    name
    for name in dir(QuerySet)
    if (name[:2] != "__" and name not in _UNUSED and name.removeprefix("a") not in _UNUSED)
    or name in ("__getattribute__", "__init__", "__iter__", "__len__")
)

# The modules of Django's lookups.
_LOOKUPS = frozenset({Lookup.__module__, related_lookups.__name__})


class Read(Call):
    """The call of a statement that reads the rows of several futures."""

    __slots__ = ()

    def aliases(self) -> set[str | None]:
        """Return the alias of the queryset."""
        return {self.args[0].db}


def merged(
    futures: list[Future[Any]], failed: list[Future[Any]], *, in_order: bool
) -> list[Future[Any]]:
    """Return what to run instead of *futures*, which it ends.

    *in_order* says that the calls run in their order: a read does not go past any other call then,
    which may change or lock its row. Those that fail are added to *failed*.
    """
    if len(futures) < 2:
        return futures
    reads = [(future, *_subject_and_key(future)) for future in futures]
    subjects = {id(subject): subject for _, subject, _ in reads if subject is not None}
    times = Counter(id(subject) for _, subject, _ in reads)
    # Once for each subject: what can be told of it costs a good part of a statement.
    querysets = {
        each: _plain_queryset(subject) for each, subject in subjects.items() if times[each] > 1
    }
    found: list[Future[Any] | tuple[Any, Wanted]] = []
    # The keys of the reads of each subject that have yet to be sent.
    runs: dict[int, Wanted] = {}
    for future, subject, key in reads:
        queryset = querysets.get(id(subject))
        if queryset is None:
            found.append(future)
            if in_order:
                runs.clear()
            continue
        wanted = runs.get(id(subject))
        if wanted is None:
            wanted = runs[id(subject)] = {}
            found.append((queryset, wanted))
        # Who asks for a row again gets an instance of its own, by another statement.
        if wanted.setdefault(key, future) is not future:
            found.append(future)
    return [future for each in found for future in _futures_of(each, failed)]


def _futures_of(
    found: Future[Any] | tuple[Any, Wanted], failed: list[Future[Any]]
) -> Iterable[Future[Any]]:
    if isinstance(found, Future):
        return (found,)
    queryset, wanted = found
    if len(wanted) == 1 or not _fit(queryset, wanted):
        return wanted.values()
    read = future_of(Read(_read, (queryset, wanted, failed), {}))
    # Its futures report the error, not the read itself.
    read.add_done_callback(Future.outcome)
    read.claim()
    return (read,)


def _subject_and_key(future: Future[Any]) -> tuple[Any, Any]:
    """Return what a ``get(pk=...)`` by Django's method is of, and its integer key, or Nones."""
    call = future.call
    if not isinstance(call, Call) or call.args or len(call.kwargs) != 1:
        return None, None
    key = call.kwargs.get("pk")
    subject = getattr(call.function, "__self__", None)
    if (
        type(key) is int
        and getattr(call.function, "__name__", "") == "get"
        and (
            (isinstance(subject, Manager) and type(subject).get is Manager.get)
            or (isinstance(subject, QuerySet) and type(subject).get is QuerySet.get)
        )
    ):
        return subject, key
    return None, None


def _plain_queryset(subject: Any) -> Any:
    """Return a queryset of the rows of *subject* that reads as Django's own does, or None.

    It keeps the alias that the router names now, which may name another one each time.
    """
    if not _selects_as_django(type(subject)):
        # The application's method may ask the database: only a future's own call may run it.
        return None
    try:
        queryset = subject.get_queryset() if isinstance(subject, Manager) else subject
        alias = queryset.db
    except Exception:
        # The calls of the futures meet the error, too, and raise it.
        return None
    if alias not in connections.settings or not _nobody_looks(connections[alias]):
        return None
    return queryset.using(alias) if _is_plain(queryset) else None


def _selects_as_django(cls: type) -> bool:
    """Return whether managers of the class *cls* have no ``get_queryset`` of the application's."""
    name = "get_queryset"
    return all(name not in vars(base) or is_djangos(vars(base)[name]) for base in cls.__mro__)


def _names_beyond_django(cls: type) -> set[str]:
    """Return the names that *cls*, a queryset's class, has beside `QuerySet`'s."""
    return {name for base in cls.__mro__[: cls.__mro__.index(QuerySet)] for name in vars(base)}


def _nobody_looks(wrapper: Any) -> bool:
    """Return whether nobody looks at the statements of *wrapper*."""
    return (
        isinstance(wrapper, BackendWrapper)
        and not wrapper.queries_logged
        and not wrapper.execute_wrappers
        and may_skip_cursors(wrapper)
    )


def _is_plain(queryset: Any) -> bool:
    """Return whether rows of *queryset* are instances of one table, read as Django reads them."""
    query, model, cls = queryset.query, queryset.model, type(queryset)
    field = model._meta.pk
    # Django 6.1: whether an instance knows those of the same query, and loads values for them, too.
    fetch_mode = getattr(queryset, "_fetch_mode", None)
    return (
        type(query) is Query
        and (cls is QuerySet or _USED.isdisjoint(_names_beyond_django(cls)))
        and queryset._iterable_class is ModelIterable
        and not queryset._prefetch_related_lookups
        and not getattr(fetch_mode, "track_peers", False)
        and selects_all_columns(query)
        and query.can_filter()
        and not (query.distinct or query.combinator or query.select_for_update)
        and query.group_by is None
        and _fails_for_no_row(query.where)
        and model.from_db.__func__ is Model.from_db.__func__
        and isinstance(field, IntegerField)
        and type(field).__module__ == "django.db.models.fields"
    )


def _fails_for_no_row(node: Any) -> bool:
    """Return whether *node*, of a WHERE, only compares columns with values.

    Anything else may raise an error for one row, which would be that of the others, too.
    """
    if type(node) is WhereNode:
        return all(map(_fails_for_no_row, node.children))
    return (
        isinstance(node, Lookup)
        and type(node).__module__ in _LOOKUPS
        and not isinstance(node, Regex)
        and type(node.lhs) is Col
        and not node.bilateral_transforms
        and not any(
            hasattr(each, "resolve_expression")
            for each in (node.rhs if isinstance(node.rhs, list | tuple | set) else (node.rhs,))
        )
    )


def _fit(queryset: Any, wanted: Wanted) -> bool:
    """Return whether the keys are in the range of their column."""
    kind = queryset.model._meta.pk.get_internal_type()
    lowest, highest = connections[queryset.db].ops.integer_field_range(kind)
    return bool(lowest <= min(wanted) and max(wanted) <= highest)


def _read(queryset: Any, wanted: Wanted, failed: list[Future[Any]]) -> None:
    """Read the rows of *wanted*, and end its futures."""
    try:
        rows = _rows(queryset, wanted)
        for key, future in wanted.items():
            if rows is None:
                _run_alone(future, failed)
            elif key in rows:
                future.set_result(rows[key])
            else:
                failed.append(future)
                # In Django's words.
                words = f"{queryset.model._meta.object_name} matching query does not exist."
                future.set_exception(queryset.model.DoesNotExist(words))
    except Error as error:
        for future in wanted.values():
            failed.append(future)
            future.set_exception(error)
        # What undoes a failed call is told, too.
        raise
    except BaseException:
        # What has not ended by now was interrupted.
        for future in wanted.values():
            future.set_cancelled()
        raise


def _rows(queryset: Any, wanted: Wanted) -> dict[int, Any] | None:
    """Return the rows by their keys; None if each has to be read alone, as Django would do."""
    lease, cursor = lease_or_cursor(connections[queryset.db], _OWN)
    try:
        if cursor is not None and _is_looked_at(cursor):
            return None
        found = list(queryset.filter(pk__in=list(wanted)).order_by())
    except Error:
        raise
    except Exception:
        # A value or an instance of one of the rows cannot be made.
        return None
    finally:
        if lease is not None:
            lease.release()
        else:
            cursor.close()
    rows = {row.pk: row for row in found}
    # Rows of one key come from tables that inherit from this one, or from further ones in FROM.
    return rows if len(rows) == len(found) and rows.keys() <= wanted.keys() else None


def _is_looked_at(cursor: Any) -> bool:
    """Return whether somebody looks at the statements of the connection that *cursor* is of.

    In the bridge others than Django's own cursors are the reason why there is a cursor at all.
    """
    return is_bridged() or cursor.connection.cursor_factory is not Cursor


def _run_alone(future: Future[Any], failed: list[Future[Any]]) -> None:
    call = future.call
    if call is None:
        # The future was cancelled meanwhile.
        return
    try:
        future.set_result(call())
    except Exception as error:
        failed.append(future)
        future.set_exception(error)
