"""Random ORM operations, each to be run synchronously or awaited, and what they come to.

An operation is drawn once and run on both backends: all that is random in it is decided before.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import reduce
from operator import and_, or_
from random import Random
from typing import Any

from django.db import models, transaction
from django.db.models import Avg, Count, F, Max, Min, Prefetch, Q, Sum
from django.db.models.functions import Coalesce, Length, Lower, Upper
from django.db.transaction import TransactionManagementError

from pgbackend import bridged
from tests.differential.models import Models, fields
from tests.differential.values import KEYS, MOMENTS, WORDS, condition, value


@dataclass
class Place:
    """Where a program runs: its models, by an alias."""

    models: Models
    alias: str

    def manager(self, name: str) -> Any:
        return getattr(self.models, name)._base_manager.using(self.alias)


@dataclass
class Operation:
    """One operation: a method to be called on what *target* returns.

    Without a method, *target* does the operation itself. *awaited* says how it runs on the loop: by
    the a-method of that name, or its synchronous form in the bridge.
    """

    name: str
    target: Callable[[Place], Any]
    method: str = ""
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] | None = None
    awaited: bool = False

    def run(self, place: Place) -> Any:
        """Run it synchronously and return what it comes to."""
        try:
            found = self.target(place)
            if self.method == "list":
                found = list(found)
            elif self.method == "iterator":
                found = list(found.iterator(chunk_size=3))
            elif self.method:
                found = getattr(found, self.method)(*deepcopy(self.args), **self._kwargs())
            return plain(found)
        except Exception as error:
            return self._described(error)

    async def arun(self, place: Place) -> Any:
        """Run it on the event loop and return what it comes to."""
        if not self.awaited or not self.method:
            return await bridged(self.run)(place)
        try:
            # What builds a queryset may run queries.
            found = await bridged(self.target)(place)
            if self.method == "list":
                found = [each async for each in found]
            elif self.method == "iterator":
                found = [each async for each in found.aiterator(chunk_size=3)]
            else:
                found = await getattr(found, f"a{self.method}")(
                    *deepcopy(self.args), **self._kwargs()
                )
            return await bridged(plain)(found)
        except Exception as error:
            return self._described(error)

    def _described(self, error: Exception) -> Any:
        found = described(error)
        # Where it is in a statement that declares a cursor depends on the cursor's name.
        return found[:-1] if self.method == "iterator" else found

    def _kwargs(self) -> dict[str, Any]:
        return deepcopy(self.kwargs or {})


@dataclass
class Block(Operation):
    """Operations in a transaction, the last of which may fail it."""

    parts: list[Operation] | None = None
    fails: bool = False

    def run(self, place: Place) -> Any:
        found: list[Any] = []
        try:
            with transaction.atomic(using=place.alias):
                for part in self.parts or ():
                    found.append(part.run(place))
                if self.fails:
                    raise ZeroDivisionError
        except Exception as error:
            _note(error, found)
        return found

    async def arun(self, place: Place) -> Any:
        if not self.awaited:
            return await bridged(self.run)(place)
        found: list[Any] = []
        try:
            async with transaction.atomic(using=place.alias):
                for part in self.parts or ():
                    found.append(await part.arun(place))
                if self.fails:
                    raise ZeroDivisionError
        except Exception as error:
            _note(error, found)
        return found


def _note(error: Exception, found: list[Any]) -> None:
    """Add what ended a block to what its operations came to.

    Not that a COMMIT would be a ROLLBACK, since a statement had failed: Django says nothing then.
    """
    if not str(error).startswith("the transaction cannot be committed"):
        found.append(described(error))


def described(error: BaseException) -> tuple[Any, ...]:
    """Return what an exception and its cause are and say.

    Django names as the cause of a broken transaction what broke another before it, too.
    """
    cause = None if isinstance(error, TransactionManagementError) else error.__cause__
    names = [
        f"{type(each).__module__}.{type(each).__qualname__}" for each in (error, cause) if each
    ]
    position = getattr(getattr(cause, "diag", None), "statement_position", None)
    # Two objects have two addresses.
    return (*names, re.sub(r" at 0x[0-9a-f]+", "", str(error)), position)


def plain(found: Any) -> Any:
    """Return a value that can be compared, with the types of all that is in it."""
    if isinstance(found, models.Model):
        state = {name: plain(each) for name, each in vars(found).items() if name != "_state"}
        related = {
            name: plain(each) if not isinstance(each, models.Model) else each.pk
            for name, each in found._state.fields_cache.items()
        }
        fetched = {
            name: plain(list(each))
            for name, each in state.pop("_prefetched_objects_cache", {}).items()
        }
        return (type(found).__name__, found._state.adding, state, related, fetched)
    if isinstance(found, models.QuerySet):
        return plain(list(found))
    if isinstance(found, dict):
        return {repr(key): plain(each) for key, each in found.items()}
    if isinstance(found, (list, tuple)):
        return (type(found).__name__, [plain(each) for each in found])
    if isinstance(found, (set, frozenset)):
        return (type(found).__name__, sorted(map(repr, found)))
    if isinstance(found, memoryview):
        return ("memoryview", bytes(found))
    return (type(found).__name__, repr(found))


class Programs:
    """A source of random programs."""

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self._fields = fields()
        for name, field in self._fields.items():
            field.set_attributes_from_name(name)
        # About how many rows a program has made of each model, so that it asks for some of them.
        self._made: dict[str, int] = {}

    def program(self, length: int) -> list[Operation]:
        """Return the operations of one program."""
        self._made = {}
        found = [self._create("label") for _ in range(2)]
        found += [self._bulk_create() for _ in range(2)]
        while len(found) < length:
            found.append(self._block() if self.rng.random() < 0.15 else self._operation())
        return found

    def _operation(self) -> Operation:
        makers = [
            (self._create, 6),
            (self._bulk_create, 2),
            (self._read, 24),
            (self._get, 8),
            (self._update, 6),
            (self._save, 8),
            (self._delete, 3),
            (self._values, 6),
            (self._aggregate, 6),
            (self._related, 6),
            (self._or_create, 4),
            (self._bulk_update, 2),
            (self._combine, 2),
            (self._many, 4),
            (self._raw, 2),
            (self._refresh, 3),
        ]
        (make,) = self.rng.choices([each for each, _ in makers], [weight for _, weight in makers])
        operation = make()
        operation.awaited = self.rng.random() < 0.5
        return operation

    def _block(self) -> Operation:
        rng = self.rng
        parts: list[Operation] = []
        for _ in range(rng.randrange(1, 5)):
            parts.append(self._block() if rng.random() < 0.2 else self._operation())
        if rng.random() < 0.3:
            number = rng.randrange(8)
            parts.insert(
                0,
                Operation(
                    "lock",
                    lambda place: (
                        place.manager("plain")
                        .select_for_update(skip_locked=number % 2 == 0)
                        .filter(pk__lt=number)
                        .order_by("pk")
                    ),
                    "list",
                ),
            )
        return Block(
            "block",
            lambda place: None,
            parts=parts,
            fails=rng.random() < 0.2,
            awaited=rng.random() < 0.5,
        )

    # What is drawn

    def _model(self) -> str:
        return self.rng.choice(["plain", "plain", "plain", "thing", "thing", "special"])

    def _names(self, model: str, count: int) -> list[str]:
        from tests.differential.models import PLAIN

        names = list(PLAIN if model == "plain" else self._fields)
        return self.rng.sample(names, min(count, len(names)))

    def _row(self, model: str, count: int | None = None) -> dict[str, Any]:
        if model == "label":
            return {"name": self.rng.choice(WORDS) + str(self._made.get("label", 0))}
        count = self.rng.randrange(6) if count is None else count
        row = {name: value(self.rng, self._fields[name]) for name in self._names(model, count)}
        if model != "plain" and self.rng.random() < 0.3:
            row["owner_id"] = self.rng.choice([1, 2, 1, 2, None, 99])
        return row

    def _pk(self, model: str) -> int:
        made = self._made.get("thing" if model == "special" else model, 0)
        return self.rng.randint(max(1, made - 12), made + 1)

    def _note(self, model: str, count: int = 1) -> None:
        name = "thing" if model == "special" else model
        self._made[name] = self._made.get(name, 0) + count

    def _q(self, model: str) -> Q:
        rng = self.rng
        count = rng.choice([0, 1, 1, 1, 2, 2, 3])
        found = [
            Q(**dict([condition(rng, self._fields[name])])) for name in self._names(model, count)
        ]
        if rng.random() < 0.4:
            found.append(Q(pk=self._pk(model)))
        if rng.random() < 0.1:
            found.append(Q(pk__in=[self._pk(model) for _ in range(3)]))
        if model != "plain" and rng.random() < 0.15:
            name = rng.choice(["owner__name__contains", "owner", "owner_id", "owner__isnull"])
            found.append(Q(**{name: True if name.endswith("null") else rng.choice([1, 2])}))
        found = [~each if rng.random() < 0.2 else each for each in found]
        return reduce(rng.choice([and_, and_, or_]), found, Q())

    def _queryset(self, model: str) -> Callable[[Place], Any]:
        rng, condition, pk_last = self.rng, self._q(model), self.rng.random() < 0.8
        names = [
            rng.choice(["", "-"]) + name
            for name in self._names(model, rng.choice([0, 0, 1, 2]))
            if not self._fields[name].get_internal_type().startswith("JSON")
        ]
        if model != "plain" and rng.random() < 0.1:
            names.append(rng.choice(["owner", "owner__name", "-owner_id"]))
        order = [*names, "pk"] if pk_last or names else ["-pk"]
        piece = slice(*sorted((rng.randrange(9), rng.randrange(9)))) if rng.random() < 0.2 else None
        change = rng.choice([None, None, None, None, None, "only", "defer", "distinct", "reverse"])
        columns = self._names(model, 2)

        def build(place: Place) -> Any:
            queryset = place.manager(model).filter(deepcopy(condition)).order_by(*order)
            if change in ("only", "defer"):
                queryset = getattr(queryset, change)(*columns)
            elif change:
                queryset = getattr(queryset, change)()
            return queryset if piece is None else queryset[piece]

        return build

    # Operations

    def _create(self, model: str | None = None) -> Operation:
        model = model or self._model()
        self._note(model)
        return Operation(
            f"create {model}",
            lambda place: place.manager(model),
            "create",
            kwargs=self._row(model),
        )

    def _bulk_create(self) -> Operation:
        rng, model = self.rng, self.rng.choice(["plain", "thing"])
        rows = [self._row(model, 5) for _ in range(rng.randrange(1, 5))]
        if rng.random() < 0.7:
            # The same columns for all, as most write it.
            names = self._names(model, 4)
            rows = [{name: value(rng, self._fields[name]) for name in names} for _ in rows]
        self._note(model, len(rows))
        options: dict[str, Any] = rng.choice(
            [{}, {}, {"batch_size": 2}, {"ignore_conflicts": True}]
        )
        if rng.random() < 0.15 and model == "thing":
            options = {
                "update_conflicts": True,
                "unique_fields": ["unique"],
                "update_fields": ["word", "number"],
            }

        def target(place: Place) -> Any:
            instances = [getattr(place.models, model)(**deepcopy(row)) for row in rows]
            return place.manager(model).bulk_create(instances, **options)

        return Operation(f"bulk_create {model}", target)

    def _read(self) -> Operation:
        model = self._model()
        method = self.rng.choice(["list", "list", "list", "first", "last", "count", "exists"])
        if self.rng.random() < 0.1:
            method = "iterator"
        return Operation(f"{method} {model}", self._queryset(model), method)

    def _get(self) -> Operation:
        model, condition = self._model(), self._q(self._model())
        pk = self._pk(model)
        if self.rng.random() < 0.7:
            return Operation(f"get {model}", lambda p: p.manager(model), "get", kwargs={"pk": pk})
        if model == "plain":
            condition = self._q(model)
        return Operation(
            f"get {model}", lambda p: p.manager(model).filter(deepcopy(condition)), "get"
        )

    def _update(self) -> Operation:
        rng, model = self.rng, self._model()
        condition, changes = self._q(model), self._row(model, rng.randrange(1, 4))
        if rng.random() < 0.25:
            changes["number"] = rng.choice([F("number") + 1, F("pk"), Length("word"), F("big")])
        if rng.random() < 0.1:
            changes["word"] = rng.choice([Upper("word"), Lower("text"), F("text")])
        return Operation(
            f"update {model}",
            lambda p: p.manager(model).filter(deepcopy(condition)),
            "update",
            kwargs=changes,
        )

    def _save(self) -> Operation:
        rng, model, pk = self.rng, self._model(), self._pk(self._model())
        changes = self._row(model, rng.randrange(4))
        only = rng.random() < 0.3
        with_expression = rng.random() < 0.1

        def target(place: Place) -> Any:
            instance = place.manager(model).get(pk=pk)
            for name, new in changes.items():
                setattr(instance, name, deepcopy(new))
            if with_expression:
                instance.number = F("number") + 1
            instance.save(using=place.alias, update_fields=list(changes) if only else None)
            return place.manager(model).get(pk=pk)

        return Operation(f"save {model}", target)

    def _delete(self) -> Operation:
        rng, model, condition = self.rng, self._model(), None
        pks = [self._pk(model) for _ in range(2)]
        condition = Q(pk__in=pks) & self._q(model) if rng.random() < 0.5 else Q(pk=pks[0])
        return Operation(
            f"delete {model}", lambda p: p.manager(model).filter(deepcopy(condition)), "delete"
        )

    def _values(self) -> Operation:
        rng, model = self.rng, self._model()
        build, names = self._queryset(model), ["pk", *self._names(model, 3)]
        kind = rng.choice(["values", "values_list", "flat", "named", "in_bulk", "dates"])

        def target(place: Place) -> Any:
            if kind == "in_bulk":
                return place.manager(model).in_bulk([1, 2, 3])
            if kind == "dates":
                return place.manager(model).dates("day", "month")
            queryset = build(place)
            if kind == "values":
                return queryset.values(*names)
            if kind == "flat":
                return queryset.values_list(names[-1], flat=True)
            return queryset.values_list(*names, named=kind == "named")

        return Operation(f"{kind} {model}", target, "" if kind == "in_bulk" else "list")

    def _aggregate(self) -> Operation:
        rng, model, condition = self.rng, self._model(), self._q("plain")
        kind = rng.choice(["aggregate", "annotate", "group"])
        aggregates = {
            "count": Count("pk"),
            "most": Max(rng.choice(["number", "word", "day", "moment"])),
            "least": Min(rng.choice(["exact", "real", "text"])),
            "sum": Sum(rng.choice(["number", "exact", "big"])),
            "mean": Avg("number"),
        }
        chosen = dict(rng.sample(sorted(aggregates.items(), key=lambda each: each[0]), 2))
        if kind == "aggregate":
            return Operation(
                f"aggregate {model}",
                lambda p: p.manager(model).filter(deepcopy(condition)),
                "aggregate",
                kwargs=chosen,
            )
        if kind == "group":
            column = rng.choice(["word", "truth", "number", "day"])
            return Operation(
                f"group {model}",
                lambda p: (
                    p.manager(model).values(column).annotate(**deepcopy(chosen)).order_by(column)
                ),
                "list",
            )
        extra = rng.choice(
            [Length("word"), Upper("text"), F("number") * 2, Coalesce("word", "text")]
        )
        return Operation(
            f"annotate {model}",
            lambda p: p.manager(model).annotate(extra_value=deepcopy(extra)).order_by("pk"),
            "list",
        )

    def _related(self) -> Operation:
        rng, kind = self.rng, self.rng.choice(["select", "prefetch", "lazy", "parts", "to_attr"])
        build, pk = self._queryset("thing"), self._pk("thing")
        key, size = rng.choice(KEYS), rng.randrange(-3, 3)

        def target(place: Place) -> Any:
            if kind == "select":
                return build(place).select_related("owner")
            if kind == "prefetch":
                return build(place).prefetch_related("labels", "parts")
            if kind == "to_attr":
                parts = place.manager("part").order_by("pk")
                return build(place).prefetch_related(Prefetch("parts", parts, to_attr="pieces"))
            thing = place.manager("thing").get(pk=pk)
            if kind == "lazy":
                return [thing.owner, [each.pk for each in thing.parts.order_by("pk")]]
            return [
                thing.parts.using(place.alias).create(pk=key, size=size),
                place.manager("part").filter(thing__number__gte=0).order_by("pk"),
            ]

        method = "" if kind in ("lazy", "parts") else "list"
        return Operation(f"related, {kind}", target, method)

    def _or_create(self) -> Operation:
        rng, model = self.rng, self.rng.choice(["plain", "thing", "label"])
        method = rng.choice(["get_or_create", "update_or_create"])
        self._note(model)
        if model == "label":
            row, defaults = {"name": rng.choice(WORDS)}, {}
        else:
            row, defaults = {"pk": self._pk(model)}, self._row(model, 3)
        return Operation(
            f"{method} {model}",
            lambda p: p.manager(model),
            method,
            kwargs={"defaults": defaults, **row},
        )

    def _bulk_update(self) -> Operation:
        rng, model = self.rng, self.rng.choice(["plain", "thing"])
        names = self._names(model, 2)
        rows = [{name: value(rng, self._fields[name]) for name in names} for _ in range(3)]

        def target(place: Place) -> Any:
            found = list(place.manager(model).order_by("pk")[:3])
            for instance, row in zip(found, deepcopy(rows), strict=False):
                for name, new in row.items():
                    setattr(instance, name, new)
            return place.manager(model).bulk_update(found, names)

        return Operation(f"bulk_update {model}", target)

    def _combine(self) -> Operation:
        kind = self.rng.choice(["union", "intersection", "difference", "in", "exists"])
        first, second = self._q("plain"), self._q("plain")

        def target(place: Place) -> Any:
            left, right = (
                place.manager("plain").filter(deepcopy(each)) for each in (first, second)
            )
            if kind == "in":
                return left.filter(pk__in=right.values("pk")).order_by("pk")
            if kind == "exists":
                return left.filter(models.Exists(right.filter(pk=models.OuterRef("pk")))).order_by(
                    "pk"
                )
            return getattr(left.values("pk", "word"), kind)(right.values("pk", "word")).order_by(
                "pk"
            )

        return Operation(kind, target, "list")

    def _many(self) -> Operation:
        rng, pk = self.rng, self._pk("thing")
        kind = rng.choice(["add", "remove", "set", "clear", "create"])
        pks = [rng.randint(1, 4) for _ in range(2)]
        name = rng.choice(WORDS) + str(rng.randrange(5))
        if kind == "create":
            self._note("label")

        def target(place: Place) -> Any:
            thing = place.manager("thing").get(pk=pk)
            related = thing.labels
            if kind == "clear":
                related.clear()
            elif kind == "create":
                related.create(name=name)
            elif kind == "set":
                related.set(pks)
            else:
                getattr(related, kind)(*pks)
            return related.order_by("pk")

        return Operation(f"labels, {kind}", target, "list")

    def _raw(self) -> Operation:
        rng, number = self.rng, self.rng.choice([1, 2, "a", None])
        word = rng.choice(WORDS)

        def target(place: Place) -> Any:
            table = place.models.plain._meta.db_table
            return place.manager("plain").raw(
                f'SELECT * FROM "{table}" WHERE id >= %s OR word = %s ORDER BY id', [number, word]
            )

        return Operation("raw", lambda place: list(target(place)))

    def _refresh(self) -> Operation:
        rng, pk, word = self.rng, self._pk("plain"), self.rng.choice(WORDS)
        deferred = rng.random() < 0.5

        def target(place: Place) -> Any:
            manager = place.manager("plain")
            instance = (manager.only("word") if deferred else manager).get(pk=pk)
            manager.filter(pk=pk).update(word=word, moment=MOMENTS[0])
            instance.refresh_from_db(fields=["word"] if deferred else None)
            return [instance.moment, instance]

        return Operation("refresh", target)
