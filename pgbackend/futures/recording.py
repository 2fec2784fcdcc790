"""Record a queryset, and return futures where Django would ask the database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ParamSpec, TypeVar, overload

from asgiref.sync import iscoroutinefunction
from django.db.models import Manager, QuerySet
from django.db.models.query import RawQuerySet

from .calls import Call, future_of
from .result import Future

P = ParamSpec("P")
T = TypeVar("T")

# Methods of querysets that return querysets, and ask nothing of the database.
CHAINED = frozenset(
    {
        "alias",
        "all",
        "annotate",
        "complex_filter",
        "dates",
        "datetimes",
        "defer",
        "difference",
        "distinct",
        "exclude",
        "extra",
        "fetch_mode",
        "filter",
        "intersection",
        "none",
        "only",
        "order_by",
        "prefetch_related",
        "raw",
        "reverse",
        "select_for_update",
        "select_related",
        "union",
        "using",
        "values",
        "values_list",
    }
)

# Methods of querysets that ask the database, and return a result.
ENDS = frozenset(
    {
        "aggregate",
        "bulk_create",
        "bulk_update",
        "contains",
        "count",
        "create",
        "delete",
        "earliest",
        "exists",
        "explain",
        "first",
        "get",
        "get_or_create",
        "in_bulk",
        "last",
        "latest",
        "update",
        "update_or_create",
    }
)

# Methods of related managers that ask the database.
OF_RELATED = frozenset({"add", "clear", "remove", "set"})

# Attributes of querysets that ask nothing of the database; the recorder has them, too.
ATTRIBUTES = frozenset({"db", "ordered", "query", "totally_ordered"})

# What a recorder does not have: methods that return neither a result nor a queryset.
LEFT_OUT = frozenset({"as_manager", "iterator", "resolve_expression"})


class Recorder:
    """A queryset or manager whose queries are futures; made by `future`.

    Methods that return querysets return recorders, and are called at once: they ask nothing of the
    database. The others return futures that have not begun. That includes the index of one row.
    """

    __slots__ = ("_subject",)

    def __init__(self, subject: Any) -> None:
        self._subject = subject

    def __repr__(self) -> str:
        # The queryset's own representation would ask for its rows.
        return f"<{type(self).__name__} of a {type(self._subject).__name__}>"

    def submit(self) -> Future[list[Any]]:
        """Return the future of the rows, as a list; they are what iterating would yield."""
        return rows(self._subject)

    def __getattr__(self, name: str) -> Any:
        if name in ENDS or name in OF_RELATED:
            return partial(_future, getattr(self._subject, name))
        if name.startswith("_") or name in LEFT_OUT:
            raise AttributeError(f"a future queryset has no {name!r}")
        found = getattr(self._subject, name)
        if name in ATTRIBUTES:
            return found
        if name[0] == "a" and (name[1:] in ENDS | OF_RELATED or iscoroutinefunction(found)):
            raise AttributeError(
                f"a future queryset has no {name!r}: its {name.removeprefix('a')}() is awaited"
            )
        return partial(self._chained, name, found)

    def _chained(self, name: str, method: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        if name in CHAINED:
            return Recorder(method(*args, **kwargs))
        # A method of the application's.
        found = method(*args, **kwargs)
        if isinstance(found, QuerySet | RawQuerySet | Manager):
            return Recorder(found)
        raise TypeError(
            f"{name}() returned no queryset, but {type(found).__name__}: for its future, write"
            f" future(queryset.{name})(...)"
        )

    def __getitem__(self, index: int | slice) -> Any:
        queryset = _rows_of(self._subject)
        if isinstance(index, slice):
            if index.step is not None:
                # Django evaluates a queryset that is sliced with a step.
                return _future(queryset.__getitem__, index)
            return Recorder(queryset[index])
        return _future(queryset.__getitem__, index)

    def __iter__(self) -> Iterator[Any]:
        # Python would ask for one row after another, without end: each is a future.
        raise TypeError("a future queryset has no rows to iterate over: await its submit()")

    def __and__(self, other: Any) -> Recorder:
        return Recorder(self._subject & _subject_of(other))

    def __or__(self, other: Any) -> Recorder:
        return Recorder(self._subject | _subject_of(other))

    def __xor__(self, other: Any) -> Recorder:
        return Recorder(self._subject ^ _subject_of(other))


# Callables first: for a checker without types of Django's, querysets may be anything.
@overload
def future(subject: Callable[P, T]) -> Callable[P, Future[T]]: ...


@overload
def future(subject: Recorder | QuerySet | RawQuerySet | Manager) -> Recorder: ...


def future(subject: Any) -> Any:
    """Return *subject* with futures as its results.

    For a queryset or a manager that is a `Recorder`: ``future(Order.objects).filter(...).count()``
    is a future. For a function, or a method such as ``order.save``, it is a function that returns
    futures; a coroutine function is awaited where its work begins.

    No work has begun: it begins when a future is awaited or gathered, or by `Future.start`.
    """
    if isinstance(subject, Recorder):
        return subject
    if isinstance(subject, QuerySet | RawQuerySet | Manager):
        return Recorder(subject)
    if not callable(subject):
        raise TypeError(f"expected a queryset, a manager or a function, not {subject!r}")
    return partial(_future, subject)


class Delayed:
    """A queryset that goes into a filter as a subquery, or is computed; made by `delayed`."""

    __slots__ = ("queryset",)

    def __init__(self, queryset: QuerySet) -> None:
        self.queryset = queryset

    @property
    def query(self) -> Any:
        """The query of the queryset, for ``Subquery`` and ``Exists``."""
        return self.queryset.query

    def resolve_expression(self, *args: Any, **kwargs: Any) -> Any:
        """Return the queryset's query, as Django asks for it where it is a value of a filter."""
        return self.queryset.resolve_expression(*args, **kwargs)

    def compute(self, timeout: float | None = None) -> list[Any]:
        """Return the rows, in bridged code or in a plain thread; see `Future.result`."""
        return rows(self.queryset.all()).result(timeout)

    async def acompute(self) -> list[Any]:
        """Return the rows."""
        return await rows(self.queryset.all())


def delayed(subject: QuerySet | Recorder | Manager) -> Any:
    """Return *subject* as a value for filters: ``filter(pk__in=delayed(queryset))``, a subquery.

    The value is a `Delayed`. Type checkers that know the types of lookups would refuse that there.
    """
    queryset = _subject_of(subject)
    if isinstance(queryset, Manager):
        queryset = queryset.all()
    if not isinstance(queryset, QuerySet):
        raise TypeError(f"expected a queryset, not {subject!r}")
    return Delayed(queryset)


def rows(subject: Any) -> Future[list[Any]]:
    """Return the future of the rows of a queryset or manager."""
    return _future(list, _rows_of(subject))


def _future(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
    return future_of(Call(function, args, kwargs))


def _rows_of(subject: Any) -> Any:
    """Return the queryset that a manager stands for."""
    return subject.all() if isinstance(subject, Manager) else subject


def _subject_of(subject: Any) -> Any:
    return subject._subject if isinstance(subject, Recorder) else subject
