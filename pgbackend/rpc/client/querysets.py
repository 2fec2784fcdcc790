"""Querysets of a service's models: calls of Django's methods are recorded, and sent as a tree."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any

from ..protocol import nodes
from ..protocol.zones import zone_name
from .calls import Call, Service
from .conditions import Q
from .ends import Ends
from .results import rows_of
from .subscriptions import EVERY, PATIENCE, WAIT, Subscription, answer_of, deadline_of


class QuerySet(Ends):
    """Rows of a model, described by Django's methods with Django's arguments.

    Each method returns a new queryset, and nothing is sent by it. `result` fetches the rows in
    synchronous code, ``await`` and ``async for`` in asynchronous code, and `submit` returns a
    future of them. Passed as a value, a queryset is a subquery of the service's.
    """

    def __init__(self, client: Service, tree: nodes.Tree, urgent: bool = False) -> None:
        self.client = client
        self.tree = tree
        self.urgent = urgent

    def __repr__(self) -> str:
        ops = "".join(f".{op.name}(…)" for op in self.tree.ops)
        return f"<{type(self).__name__} {self.tree.model}{ops}>"

    def _op(self, name: str, /, *args: Any, **kwargs: Any) -> QuerySet:
        tree = self.tree
        ops = (*tree.ops, nodes.Op(name, args, kwargs))
        made = nodes.Tree(tree.model, ops, tree.end, tree.fields)
        return type(self)(self.client, made, self.urgent)

    def _end(
        self, convert: Callable[[Any], Any], name: str, /, *args: Any, **kwargs: Any
    ) -> Call[Any]:
        tree = self.tree
        made = nodes.Tree(tree.model, tree.ops, nodes.Op(name, args, kwargs), tree.fields)
        return Call(self.client, made, convert, urgent=self.urgent)

    # Rows

    def submit(self) -> Call[list[Any]]:
        """Return a future of the rows; it is sent when its result is first wanted."""
        return self._end(rows_of, "rows")

    def result(self, timeout: float | None = None) -> list[Any]:
        """Return the rows; wait for them up to *timeout* seconds."""
        return self.submit().result(timeout)

    def __await__(self) -> Generator[Any, Any, list[Any]]:
        return self.submit().__await__()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.result())

    async def __aiter__(self) -> AsyncIterator[Any]:
        for row in await self.submit():
            yield row

    def subscribe(
        self, *, every: float = EVERY, patience: float | None = PATIENCE, wait: float = WAIT
    ) -> Subscription[list[Any]]:
        """Return the list of the rows, now and again whenever they are others: iterate over it.

        *every*: the seconds at least between two lists. *patience*: for how many seconds the
        service may be away, None: for ever. *wait*: how many seconds one message waits.
        """

        def ask(seen: str | None, seconds: float) -> Call[Any]:
            call = self._end(lambda found: answer_of(found, rows_of), "changes", seen, seconds)
            call.within = deadline_of(seconds, self.client.timeout)
            return call

        return Subscription(ask, every=every, patience=patience, wait=wait)

    def delayed(self) -> Delayed:
        """Return this queryset as a value: in another one's `filter` the service runs both."""
        return Delayed(self)

    def only_fields(self, *names: str) -> QuerySet:
        """Have the service answer these columns of the rows, and no others."""
        tree = self.tree
        made = nodes.Tree(tree.model, tree.ops, tree.end, names)
        return type(self)(self.client, made, self.urgent)

    # Methods that return querysets

    def all(self) -> QuerySet:
        return self._op("all")

    def none(self) -> QuerySet:
        return self._op("none")

    def filter(self, /, *args: Any, **lookups: Any) -> QuerySet:
        return self._op("filter", Q(*args, **lookups))

    def exclude(self, /, *args: Any, **lookups: Any) -> QuerySet:
        return self._op("exclude", Q(*args, **lookups))

    def annotate(self, /, *args: Any, **expressions: Any) -> QuerySet:
        return self._op("annotate", **_named(args), **expressions)

    def alias(self, /, *args: Any, **expressions: Any) -> QuerySet:
        return self._op("alias", **_named(args), **expressions)

    def order_by(self, *fields: Any) -> QuerySet:
        return self._op("order_by", *fields)

    def reverse(self) -> QuerySet:
        return self._op("reverse")

    def distinct(self, *fields: str) -> QuerySet:
        return self._op("distinct", *fields)

    def values(self, /, *fields: Any, **expressions: Any) -> QuerySet:
        return self._op("values", *fields, **expressions)

    def values_list(self, *fields: Any, flat: bool = False, named: bool = False) -> QuerySet:
        if flat and named:
            raise TypeError("flat and named exclude each other")
        options = {"flat": True} if flat else {"named": True} if named else {}
        return self._op("values_list", *fields, **options)

    def dates(self, field: str, kind: str, order: str = "ASC") -> QuerySet:
        return self._op("dates", field, kind, order)

    def datetimes(
        self, field: str, kind: str, order: str = "ASC", tzinfo: str | datetime.tzinfo | None = None
    ) -> QuerySet:
        """As Django's; *tzinfo* may be the name of a time zone, "Europe/Moscow".

        Without it the service's own counts.
        """
        zone = tzinfo if isinstance(tzinfo, str) else zone_name(tzinfo)
        return self._op("datetimes", field, kind, order, zone)

    def only(self, *fields: str) -> QuerySet:
        return self._op("only", *fields)

    def defer(self, *fields: str | None) -> QuerySet:
        return self._op("defer", *fields)

    def select_related(self, *fields: str | None) -> QuerySet:
        return self._op("select_related", *fields)

    def prefetch_related(self, *lookups: Any) -> QuerySet:
        """As Django's; for a Prefetch: ``(path, queryset or None, to_attr or None)``."""
        return self._op("prefetch_related", *lookups)

    def select_for_update(
        self,
        nowait: bool = False,
        skip_locked: bool = False,
        of: tuple[str, ...] = (),
        no_key: bool = False,
    ) -> QuerySet:
        """As Django's; it makes sense in `Client.gather` with *atomic*."""
        if nowait and skip_locked:
            raise ValueError("nowait and skip_locked exclude each other")
        return self._op(
            "select_for_update", nowait=nowait, skip_locked=skip_locked, of=of, no_key=no_key
        )

    def union(self, *others: QuerySet, all: bool = False) -> QuerySet:
        return self._op("union", *others, all=all)

    def intersection(self, *others: QuerySet) -> QuerySet:
        return self._op("intersection", *others)

    def difference(self, *others: QuerySet) -> QuerySet:
        return self._op("difference", *others)

    def __and__(self, other: QuerySet) -> QuerySet:
        return self._op("and", other)

    def __or__(self, other: QuerySet) -> QuerySet:
        return self._op("or", other)

    def __xor__(self, other: QuerySet) -> QuerySet:
        return self._op("xor", other)

    def __getitem__(self, key: slice) -> QuerySet:
        """Return some of the rows, counted from 0: ``queryset[5:10]``, no step, none below 0."""
        if not isinstance(key, slice) or key.step is not None:
            raise TypeError("a queryset is sliced as [start:stop]; for one row use first()")
        if (key.start or 0) < 0 or (key.stop or 0) < 0:
            raise ValueError("rows are counted from the first one: no negative index")
        return self._op("slice", key.start, key.stop)


class Delayed:
    """A queryset as a value: the service runs it within another one, or `compute` fetches it."""

    def __init__(self, queryset: QuerySet) -> None:
        self.queryset = queryset

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.queryset!r}>"

    def submit(self) -> Call[list[Any]]:
        """Return a future of the rows."""
        return self.queryset.submit()

    def compute(self, timeout: float | None = None) -> list[Any]:
        """Return the rows; wait for them up to *timeout* seconds."""
        return self.queryset.result(timeout)

    def __await__(self) -> Generator[Any, Any, list[Any]]:
        return self.queryset.__await__()


def as_call(asked: QuerySet | Delayed | Call[Any]) -> Call[Any]:
    """Return *asked* as what is sent: of a queryset its rows."""
    if isinstance(asked, QuerySet | Delayed):
        return asked.submit()
    if not isinstance(asked, Call):
        raise TypeError(f"querysets and their ends can be sent together, not {asked!r}")
    return asked


def _named(aggregates: tuple[Any, ...]) -> dict[str, Any]:
    """Return positional aggregates by the names that Django gives them."""
    return {each.default_alias: each for each in aggregates}
