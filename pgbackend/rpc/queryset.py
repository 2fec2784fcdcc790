"""The querysets of models of a service: what is called is recorded, and sent at the end."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from django.conf import settings
from django.db import NotSupportedError, models
from django.db.models.query import EmptyQuerySet, ModelIterable
from django.utils import timezone

from . import arguments, recording
from .ends import Ends
from .iterables import (
    RpcFlatIterable,
    RpcModelIterable,
    RpcNamedIterable,
    RpcValuesIterable,
    RpcValuesListIterable,
)
from .protocol import nodes
from .protocol.zones import zone_name
from .record import RecordedQuery
from .results import Delayed, RpcFuture


class RpcQuerySet(Ends, models.QuerySet):
    """A queryset whose rows another service has.

    All methods are those of Django's queryset, with the same arguments, results and errors; `raw`,
    `extra` and expressions that no message has raise NotSupportedError or `BadValue`. Names of
    fields are the service's: it may have some that the model here does not declare.
    """

    def __init__(
        self, model: Any = None, query: Any = None, using: Any = None, hints: Any = None
    ) -> None:
        if query is None and model is not None:
            query = RecordedQuery(model)
        super().__init__(model=model, query=query, using=using, hints=hints)
        self._iterable_class = RpcModelIterable
        # Whether the ends return futures.
        self._returns_futures = False
        self._urgent = False
        self._within: float | None = None

    # What is sent, how, and when

    def future(self) -> RpcQuerySet:
        """Return a queryset whose ends return futures, `first` and `count` for example."""
        made = self._chain()
        made._returns_futures = True
        return made

    def submit(self) -> RpcFuture[list[Any]]:
        """Send the queryset now; return the future of the list of its rows."""
        return self.rows_future().submit()

    def delayed(self) -> Delayed:
        """Return the queryset as a value for another one's filter, where the service runs it."""
        return Delayed(self._chain())

    def urgent(self) -> RpcQuerySet:
        """Return a queryset that is sent by the transport's queue of high priority."""
        made = self._chain()
        made._urgent = True
        return made

    def within(self, seconds: float) -> RpcQuerySet:
        """Return a queryset with a deadline of its own; without it the alias's TIMEOUT counts."""
        if not seconds > 0:
            raise ValueError(f"a deadline is in seconds, above 0, not {seconds!r}")
        made = self._chain()
        made._within = seconds
        return made

    # Python's methods

    def __repr__(self) -> str:
        # A page of errors shows many querysets: a service that is silent is not waited for long.
        shown = self if self._within is not None else self.within(2.0)
        shown._result_cache = self._result_cache
        return models.QuerySet.__repr__(shown)

    def __aiter__(self) -> AsyncIterator[Any]:
        async def rows() -> AsyncIterator[Any]:
            if self._result_cache is None:
                self._result_cache = await self.rows_future()
            for each in self._result_cache or ():
                yield each

        return rows()

    def __and__(self, other: Any) -> Any:
        return self._combined("and", "&", other)

    def __or__(self, other: Any) -> Any:
        return self._combined("or", "|", other)

    def __xor__(self, other: Any) -> Any:
        return self._combined("xor", "^", other)

    def _combined(self, name: str, sign: str, other: Any) -> Any:
        recording.queryset(other)
        if self.query.combinator or other.query.combinator:
            raise TypeError(f"Cannot use {sign} operator with combined queryset.")
        if self.model is not other.model:
            raise TypeError("Cannot combine queries on two different base models.")
        empty, other_empty = (isinstance(each, EmptyQuerySet) for each in (self, other))
        if other_empty:
            return other if name == "and" else self
        if empty:
            return self if name == "and" else other
        if self.query.is_sliced or other.query.is_sliced:
            raise TypeError("Cannot combine queries once a slice has been taken.")
        if self.query.distinct != other.query.distinct:
            raise TypeError("Cannot combine a unique query with a non-unique query.")
        made = self._recorded(name, nodes.Delayed(other.query.tree()))
        known = {**made._known_related_objects}
        for field, objects in other._known_related_objects.items():
            known[field] = {**known.get(field, {}), **objects}
        made._known_related_objects = known
        return made

    def iterator(self, chunk_size: int | None = None) -> Iterator[Any]:
        if chunk_size is not None and chunk_size <= 0:
            raise ValueError("Chunk size must be strictly positive.")
        return iter(self._iterable_class(self))

    async def aiterator(self, chunk_size: int = 2000) -> AsyncIterator[Any]:
        if chunk_size <= 0:
            raise ValueError("Chunk size must be strictly positive.")
        async for each in self._iterable_class(self):
            yield each

    # What is recorded

    def none(self) -> Any:
        made = self._recorded("none")
        made.query.set_empty()
        return made

    def _filter_or_exclude_inplace(self, negate: bool, args: Any, kwargs: Any) -> None:
        # Q's own arguments begin so; no path does.
        if invalid := sorted(name for name in kwargs if name.startswith("_")):
            names = ", ".join(f"'{name}'" for name in invalid)
            raise TypeError(f"The following kwargs are invalid: {names}")
        found = recording.condition(args, kwargs, self.model)
        if found.children:
            self._query.record_condition("exclude" if negate else "filter", found)

    def complex_filter(self, filter_obj: Any) -> Any:
        if isinstance(filter_obj, models.Q):
            return self.filter(filter_obj)
        return self.filter(**filter_obj)

    def annotate(self, *args: Any, **kwargs: Any) -> Any:
        return self._annotated("annotate", args, kwargs)

    def alias(self, *args: Any, **kwargs: Any) -> Any:
        return self._annotated("alias", args, kwargs)

    def _annotated(self, name: str, args: Any, kwargs: Any) -> Any:
        arguments.check_combined(self, name)
        arguments.check_expressions(args + tuple(kwargs.values()), "annotate")
        given = arguments.by_alias(args, kwargs, "annotations")
        fields = {
            name for field in self.model._meta.get_fields() for name in arguments.names_of(field)
        }
        for alias, each in given.items():
            if self._fields is None and alias in fields:
                raise ValueError(f"The annotation '{alias}' conflicts with a field on the model.")
            if isinstance(each, models.FilteredRelation):
                raise NotSupportedError("FilteredRelation cannot be sent to a service")
        sent = {alias: recording.expression(each) for alias, each in given.items()}
        return self._recorded(name, **sent)

    def order_by(self, *field_names: Any) -> Any:
        if self.query.is_sliced:
            raise TypeError("Cannot reorder a query once a slice has been taken.")
        made = self._recorded("order_by", *map(recording.ordering, field_names))
        made.query.order_by = field_names
        made.query.default_ordering = False
        return made

    def reverse(self) -> Any:
        if self.query.is_sliced:
            raise TypeError("Cannot reverse a query once a slice has been taken.")
        made = self._recorded("reverse")
        made.query.standard_ordering = not made.query.standard_ordering
        return made

    def distinct(self, *field_names: str) -> Any:
        arguments.check_combined(self, "distinct")
        if self.query.is_sliced:
            raise TypeError("Cannot create distinct fields once a slice has been taken.")
        made = self._recorded("distinct", *field_names)
        made.query.distinct, made.query.distinct_fields = True, field_names
        return made

    def values(self, *fields: Any, **expressions: Any) -> Any:
        made = self._recorded(
            "values", *map(arguments.column, fields), **arguments.columns(expressions)
        )
        made._fields = (*fields, *expressions)
        made._iterable_class = RpcValuesIterable
        return made

    def values_list(self, *fields: Any, flat: bool = False, named: bool = False) -> Any:
        if flat and named:
            raise TypeError("'flat' and 'named' can't be used together.")
        if flat and len(fields) > 1:
            raise TypeError(
                "'flat' is not valid when values_list is called with more than one field."
            )
        options = {"flat": True} if flat else {"named": True} if named else {}
        made = self._recorded("values_list", *map(arguments.column, fields), **options)
        made._fields = fields
        made._iterable_class = (
            RpcFlatIterable if flat else RpcNamedIterable if named else RpcValuesListIterable
        )
        return made

    def dates(self, field_name: str, kind: str, order: str = "ASC") -> Any:
        if kind not in ("year", "month", "week", "day"):
            raise ValueError("'kind' must be one of 'year', 'month', 'week', or 'day'.")
        return self._of_dates("dates", field_name, kind, order)

    def datetimes(self, field_name: str, kind: str, order: str = "ASC", tzinfo: Any = None) -> Any:
        if kind not in ("year", "month", "week", "day", "hour", "minute", "second"):
            raise ValueError(
                "'kind' must be one of 'year', 'month', 'week', 'day', 'hour', 'minute', or"
                " 'second'."
            )
        if settings.USE_TZ and tzinfo is None:
            tzinfo = timezone.get_current_timezone()
        zone = zone_name(tzinfo if settings.USE_TZ else None)
        return self._of_dates("datetimes", field_name, kind, order, zone)

    def _of_dates(self, name: str, field_name: str, kind: str, order: str, *zone: Any) -> Any:
        if order not in ("ASC", "DESC"):
            raise ValueError("'order' must be either 'ASC' or 'DESC'.")
        made = self._recorded(name, field_name, kind, order, *zone)
        made._fields = (field_name,)
        made._iterable_class = RpcFlatIterable
        return made

    def select_related(self, *fields: Any) -> Any:
        arguments.check_combined(self, "select_related")
        if self._fields is not None:
            raise TypeError("Cannot call select_related() after .values() or .values_list()")
        made = self._recorded("select_related", *fields)
        made.query.select_related = fields != (None,)
        return made

    def prefetch_related(self, *lookups: Any) -> Any:
        arguments.check_combined(self, "prefetch_related")
        if lookups == (None,):
            return self._recorded("prefetch_related", None)
        made = self._chain()
        sent = [arguments.prefetch(each, made.query.attributes) for each in lookups]
        made.query.record("prefetch_related", *sent)
        return made

    def defer(self, *fields: Any) -> Any:
        arguments.check_combined(self, "defer")
        if self._fields is not None:
            raise TypeError("Cannot call defer() after .values() or .values_list()")
        return self._recorded("defer", *fields)

    def only(self, *fields: Any) -> Any:
        arguments.check_combined(self, "only")
        if self._fields is not None:
            raise TypeError("Cannot call only() after .values() or .values_list()")
        if fields == (None,):
            raise TypeError("Cannot pass None as an argument to only().")
        return self._recorded("only", *fields)

    def select_for_update(
        self, nowait: bool = False, skip_locked: bool = False, of: Any = (), no_key: bool = False
    ) -> Any:
        """Lock the rows until the message's transaction ends: of use in an atomic `gather`."""
        if nowait and skip_locked:
            raise ValueError("The nowait option cannot be used with skip_locked.")
        made = self._recorded(
            "select_for_update", nowait=nowait, skip_locked=skip_locked, of=tuple(of), no_key=no_key
        )
        made._for_write = True
        made.query.select_for_update = True
        return made

    def union(self, *other_qs: Any, all: bool = False) -> Any:
        full = [each for each in (self, *other_qs) if not isinstance(each, EmptyQuerySet)]
        if not full or not other_qs:
            return self
        if len(full) == 1:
            return full[0]
        return full[0]._with_others("union", *full[1:], all=all)

    def intersection(self, *other_qs: Any) -> Any:
        empty = [each for each in (self, *other_qs) if isinstance(each, EmptyQuerySet)]
        return empty[0] if empty else self._with_others("intersection", *other_qs)

    def difference(self, *other_qs: Any) -> Any:
        if isinstance(self, EmptyQuerySet):
            return self
        full = [each for each in other_qs if not isinstance(each, EmptyQuerySet)]
        return self._with_others("difference", *full)

    def _with_others(self, combinator: str, *other_qs: Any, all: bool = False) -> Any:
        others = [recording.queryset(each) for each in other_qs]
        options = {"all": all} if combinator == "union" else {}
        made = self._recorded(combinator, *others, **options)
        made.query.combinator, made.query.combinator_all = combinator, all
        made.query.low_mark, made.query.high_mark = 0, None
        made.query.order_by, made.query.default_ordering = (), False
        return made

    def extra(self, *_args: Any, **_options: Any) -> Any:
        raise NotSupportedError(
            "extra() is SQL, which no service takes: use annotate(), filter() and order_by(), or a"
            " method of the service's manager: objects.call(...)"
        )

    def raw(self, *_args: Any, **_options: Any) -> Any:
        raise NotSupportedError(
            "raw() is SQL, which no service takes: use the queryset's methods, or a method of the"
            " service's manager: objects.call(...)"
        )

    # Django's private methods

    def _recorded(self, name: str, /, *args: Any, **kwargs: Any) -> Any:
        """Return a copy with one more call."""
        made = self._chain()
        made.query.record(name, *args, **kwargs)
        return made

    def _clone(self) -> Any:
        made = super()._clone()
        made._returns_futures = self._returns_futures
        made._urgent = self._urgent
        made._within = self._within
        return made

    def _is_of_models(self) -> bool:
        return issubclass(self._iterable_class, ModelIterable)
