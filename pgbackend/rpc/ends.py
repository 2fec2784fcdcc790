"""The methods that end a recorded queryset: each sends it, at once or as a future."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from django.db import NotSupportedError, connections

from . import arguments, recording, rows, saving
from .called import returned
from .client.subscriptions import (
    EVERY,
    PATIENCE,
    WAIT,
    Subscription,
    answer_of,
    deadline_of,
)
from .protocol import nodes
from .results import RpcFuture
from .router import service_alias


def end(build: Callable[..., RpcFuture[Any]]) -> Any:
    """Return the method whose call is what *build* describes: its result, or a future of it."""

    @functools.wraps(build)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        future = build(self, *args, **kwargs)
        return future if self._returns_futures else future.result()

    return method


def awaited(build: Callable[..., RpcFuture[Any]]) -> Any:
    """Return the asynchronous twin of `end`."""

    @functools.wraps(build)
    async def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await build(self, *args, **kwargs)

    return method


def writes(*methods: Any) -> None:
    """Keep templates from calling *methods*, as Django does."""
    for each in methods:
        each.alters_data = True


class Ends:
    """The ends of a `RpcQuerySet`; `call` is of this package, the others are Django's."""

    _result_cache: list[Any] | None

    def _end(self: Any, name: str, /, *args: Any, **kwargs: Any) -> Callable[..., RpcFuture[Any]]:
        """Return what makes the future of the queryset with an end.

        It takes *convert*, and *fields*: whether the answer has the fields of the model. The end's
        own arguments may have any name.
        """
        op = nodes.Op(name, args, kwargs)

        def future(
            convert: Callable[[Any], Any] = rows.plain, *, fields: bool = False
        ) -> RpcFuture[Any]:
            tree = self.query.tree(op, self.model.Rpc.fields if fields else None)
            return self._future_of(tree, convert)

        return future

    def _future_of(self: Any, tree: nodes.Tree, convert: Callable[[Any], Any]) -> RpcFuture[Any]:
        made: RpcFuture[Any] = service_alias(self.db, self.model).future(
            tree, convert=convert, model=self.model, urgent=self._urgent, within=self._within
        )
        return made

    def _known(self: Any, value: Any) -> RpcFuture[Any]:
        """Return a future whose result needs no message."""
        made: RpcFuture[Any] = RpcFuture()
        made.set_result(value)
        return made

    def rows_future(self: Any) -> RpcFuture[list[Any]]:
        """Return the future of the list of the rows, whatever `future` says."""
        if self._result_cache is not None:
            return self._known(self._result_cache)
        if self.query.is_empty():
            return self._known([])
        return self._end("rows")(lambda found: rows.made(found, self), fields=self._is_of_models())

    def subscribe(
        self: Any, *, every: float = EVERY, patience: float | None = PATIENCE, wait: float = WAIT
    ) -> Subscription[list[Any]]:
        """Return the list of the rows, now and again whenever they are others: iterate over it.

        *every*: the seconds at least between two lists. *patience*: for how many seconds the
        service may be away, None: for ever. *wait*: how many seconds one message waits.
        """

        def ask(seen: str | None, seconds: float) -> RpcFuture[Any]:
            timeout = self._within or connections[self.db].service.timeout
            asked = self.within(deadline_of(seconds, timeout))
            return asked._end("changes", seen, seconds)(
                lambda found: answer_of(found, lambda part: rows.made(part, self)),
                fields=self._is_of_models(),
            )

        return Subscription(ask, every=every, patience=patience, wait=wait)

    def _one(self: Any, name: str, *args: Any) -> RpcFuture[Any]:
        def convert(found: Any) -> Any:
            return None if found is None else rows.made(found, self)[0]

        return self._end(name, *args)(convert, fields=self._is_of_models())

    def _get(self: Any, *args: Any, **kwargs: Any) -> RpcFuture[Any]:
        if self.query.combinator and (args or kwargs):
            raise NotSupportedError(
                f"Calling QuerySet.get(...) with filters after {self.query.combinator}() is not"
                " supported."
            )
        found = self.filter(*args, **kwargs) if args or kwargs else self
        if found.query.is_empty():
            raise self.model.DoesNotExist(
                f"{self.model._meta.object_name} matching query does not exist."
            )
        return found._one("get")

    def _first(self: Any) -> RpcFuture[Any]:
        return self._known(None) if self.query.is_empty() else self._one("first")

    def _last(self: Any) -> RpcFuture[Any]:
        if self.query.is_sliced:
            raise TypeError("Cannot reverse a query once a slice has been taken.")
        return self._known(None) if self.query.is_empty() else self._one("last")

    def _latest(self: Any, *fields: Any) -> RpcFuture[Any]:
        return self._by_date("latest", fields)

    def _earliest_one(self: Any, *fields: Any) -> RpcFuture[Any]:
        return self._by_date("earliest", fields)

    def _by_date(self: Any, name: str, fields: tuple[Any, ...]) -> RpcFuture[Any]:
        if self.query.is_sliced:
            raise TypeError("Cannot change a query once a slice has been taken.")
        return self._one(name, *map(recording.ordering, fields))

    def _count(self: Any) -> RpcFuture[int]:
        if self._result_cache is not None:
            return self._known(len(self._result_cache))
        return self._known(0) if self.query.is_empty() else self._end("count")()

    def _exists(self: Any) -> RpcFuture[bool]:
        if self._result_cache is not None:
            return self._known(bool(self._result_cache))
        return self._known(False) if self.query.is_empty() else self._end("exists")()

    def _contains(self: Any, obj: Any) -> RpcFuture[bool]:
        arguments.check_combined(self, "contains")
        if self._fields is not None:
            raise TypeError("Cannot call QuerySet.contains() after .values() or .values_list().")
        try:
            if obj._meta.concrete_model != self.model._meta.concrete_model:
                return self._known(False)
        except AttributeError:
            raise TypeError("'obj' must be a model instance.") from None
        if self.query.is_sliced and self._result_cache is None:
            raise TypeError("Cannot filter a query once a slice has been taken.")
        if obj.pk is None:
            raise ValueError("QuerySet.contains() cannot be used on unsaved objects.")
        if self._result_cache is not None:
            return self._known(obj in self._result_cache)
        if self.query.is_empty():
            return self._known(False)
        return self._end("contains", recording.instance(obj))()

    def _aggregate(self: Any, *args: Any, **kwargs: Any) -> RpcFuture[dict[str, Any]]:
        if self.query.distinct_fields:
            raise NotImplementedError("aggregate() + distinct(fields) not implemented.")
        arguments.check_expressions((*args, *kwargs.values()), "aggregate")
        for each in args:
            try:
                kwargs[each.default_alias] = each
            except (AttributeError, TypeError):
                raise TypeError("Complex aggregates require an alias") from None
        sent = {alias: recording.expression(each) for alias, each in kwargs.items()}
        return self._end("aggregate", **sent)()

    def _in_bulk(
        self: Any, id_list: Iterable[Any] | None = None, *, field_name: str = "pk"
    ) -> RpcFuture[dict[Any, Any]]:
        if self.query.is_sliced:
            raise TypeError("Cannot use 'limit' or 'offset' with in_bulk().")
        if not self._is_of_models():
            raise TypeError("in_bulk() cannot be used with values() or values_list().")
        saving.check_unique(self, field_name)
        found = self
        if id_list is not None:
            keys = list(id_list)
            if not keys:
                return self._known({})
            found = self.filter(**{f"{field_name}__in": keys})
        if found.query.is_empty():
            return self._known({})

        def convert(answer: Any) -> dict[Any, Any]:
            return {getattr(each, field_name): each for each in rows.made(answer, found)}

        return found._end("rows")(convert, fields=True)

    def _explain(self: Any, *, format: str | None = None, **options: Any) -> RpcFuture[str]:
        if format is not None:
            options["format"] = format
        return self._end("explain", **options)()

    def _call(self: Any, method: str, /, *args: Any, **kwargs: Any) -> RpcFuture[Any]:
        """Call a method of the service's manager or queryset, which it has to expose.

        Return what it returns, a queryset as a list. Instances are of this model; a row of another
        model is a dictionary of its fields. One that may not be seen is None, and left out of a
        list.
        """
        sent = {name: recording.recorded(each) for name, each in kwargs.items()}
        return self._end("call", method, *map(recording.recorded, args), **sent)(
            functools.partial(returned, self), fields=True
        )

    # Writes

    def _update_rows(self: Any, **kwargs: Any) -> RpcFuture[int]:
        arguments.check_combined(self, "update")
        if self.query.is_sliced:
            raise TypeError("Cannot update a query once a slice has been taken.")
        self._for_write = True
        sent = {name: recording.recorded(each) for name, each in kwargs.items()}
        self._result_cache = None
        return self._known(0) if self.query.is_empty() else self._end("update", **sent)()

    def _delete_rows(self: Any) -> RpcFuture[tuple[int, dict[str, int]]]:
        arguments.check_combined(self, "delete")
        if self.query.is_sliced:
            raise TypeError("Cannot use 'limit' or 'offset' with delete().")
        if self.query.distinct_fields:
            raise TypeError("Cannot call delete() after .distinct(*fields).")
        if self._fields is not None:
            raise TypeError("Cannot call delete() after .values() or .values_list()")
        self._for_write = True
        self._result_cache = None
        return self._known((0, {})) if self.query.is_empty() else self._end("delete")()

    def _get_or_create(self: Any, defaults: Any = None, **kwargs: Any) -> RpcFuture[Any]:
        return saving.get_or_create(self, kwargs, defaults)

    def _update_or_create(
        self: Any, defaults: Any = None, create_defaults: Any = None, **kwargs: Any
    ) -> RpcFuture[Any]:
        return saving.update_or_create(self, kwargs, defaults, create_defaults)

    def _bulk_create(self: Any, objs: Iterable[Any], *args: Any, **options: Any) -> RpcFuture[Any]:
        return saving.bulk_create(self, objs, *args, **options)

    def _bulk_update(
        self: Any, objs: Iterable[Any], fields: Iterable[str], batch_size: int | None = None
    ) -> RpcFuture[int]:
        return saving.bulk_update(self, objs, fields, batch_size)

    def create(self: Any, **kwargs: Any) -> Any:
        made = saving.new(self, kwargs)
        if self._returns_futures:
            return saving.insert(self, made)
        made.save(force_insert=True, using=self.db)
        return made

    async def acreate(self: Any, **kwargs: Any) -> Any:
        made = saving.new(self, kwargs)
        await made.asave(force_insert=True, using=self.db)
        return made

    get, aget = end(_get), awaited(_get)
    first, afirst = end(_first), awaited(_first)
    last, alast = end(_last), awaited(_last)
    latest, alatest = end(_latest), awaited(_latest)
    earliest, aearliest = end(_earliest_one), awaited(_earliest_one)
    count, acount = end(_count), awaited(_count)
    exists, aexists = end(_exists), awaited(_exists)
    contains, acontains = end(_contains), awaited(_contains)
    aggregate, aaggregate = end(_aggregate), awaited(_aggregate)
    in_bulk, ain_bulk = end(_in_bulk), awaited(_in_bulk)
    explain, aexplain = end(_explain), awaited(_explain)
    call, acall = end(_call), awaited(_call)
    update, aupdate = end(_update_rows), awaited(_update_rows)
    delete, adelete = end(_delete_rows), awaited(_delete_rows)
    get_or_create, aget_or_create = end(_get_or_create), awaited(_get_or_create)
    update_or_create, aupdate_or_create = end(_update_or_create), awaited(_update_or_create)
    bulk_create, abulk_create = end(_bulk_create), awaited(_bulk_create)
    bulk_update, abulk_update = end(_bulk_update), awaited(_bulk_update)

    writes(create, acreate, update, aupdate, delete, adelete, get_or_create, aget_or_create)
    writes(
        update_or_create, aupdate_or_create, bulk_create, abulk_create, bulk_update, abulk_update
    )
    # As Django's: managers do not have them.
    delete.queryset_only = adelete.queryset_only = True
