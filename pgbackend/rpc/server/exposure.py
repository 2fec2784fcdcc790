"""What of a model is exposed: the allow-list that every name of a message is looked up in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from django.core.exceptions import FieldDoesNotExist, ImproperlyConfigured
from django.db import models

from ..protocol.errors import OperationNotAllowed, PermissionDenied

OPERATIONS = ("read", "create", "update", "delete")

# Lookups of values that may be read anyway. None of them takes a pattern whose cost grows with more
# than its length, as regex does.
LOOKUPS = frozenset(
    {
        *("exact", "iexact", "in", "isnull", "lt", "lte", "gt", "gte", "range"),
        *("contains", "icontains", "startswith", "istartswith", "endswith", "iendswith"),
    }
)

# Row predicate: the queryset, restricted to what the principal may see or change.
Rows = Callable[[Any, models.QuerySet[Any]], models.QuerySet[Any]]
# Whether the principal may do the operation, or call the method of that name, on the model.
Permission = Callable[[Any, str, type[models.Model]], bool]

# For each path its names; "*" for all others.
Names = Mapping[str, frozenset[str]]


class Caller(Protocol):
    """For whom something is looked up."""

    def named(self) -> Any:
        """Return the principal, for a function of the project."""


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """What of *model* may be reached from outside; nothing else may."""

    model: type[models.Model]
    # Names of concrete fields and, if writable, of many-to-many ones.
    readable: tuple[str, ...] = ()
    writable: tuple[str, ...] = ()
    # Paths over relations, "station__name", and names of relations, "orders".
    paths: tuple[str, ...] = ()
    lookups: Names = field(default_factory=dict)
    transforms: Names = field(default_factory=dict)
    # JSON fields, or paths to such, inside of which any key may be named.
    json_keys: frozenset[str] = frozenset()
    # Paths; True: all that may be used in conditions.
    ordering: frozenset[str] | bool = frozenset()
    aggregates: frozenset[str] = frozenset()
    functions: frozenset[str] = frozenset()
    operations: frozenset[str] = frozenset({"read"})
    # By name: whether it only reads.
    methods: Mapping[str, bool] = field(default_factory=dict)
    rows: Rows | None = None
    writable_rows: Rows | None = None
    permission: Permission | None = None
    max_rows: int | None = None
    max_affected: int | None = None
    full_clean: bool = True
    explain: bool = False
    subscribe: bool = False
    manager: str | None = None

    @cached_property
    def columns(self) -> tuple[models.Field[Any, Any], ...]:
        """The readable columns, in the model's order; the primary key is always among them."""
        opts = self.model._meta
        return tuple(
            each for each in opts.concrete_fields if each.primary_key or each.name in self.readable
        )

    @cached_property
    def allowed(self) -> frozenset[str]:
        """All paths that conditions and expressions may name."""
        own = {name for each in self.columns for name in (each.name, each.attname)}
        return frozenset({"pk", *own, *self.paths})

    @cached_property
    def prefixes(self) -> frozenset[str]:
        """What a path may begin with on its way to an allowed one."""
        found = set()
        for path in self.allowed:
            parts = path.split("__")
            found |= {"__".join(parts[:end]) for end in range(1, len(parts))}
        return frozenset(found)

    def lookups_of(self, path: str) -> frozenset[str]:
        return self._lookups.get(path, self.lookups.get("*", frozenset()))

    def transforms_of(self, path: str) -> frozenset[str]:
        return self._transforms.get(path, self.transforms.get("*", frozenset()))

    def may_order_by(self, path: str) -> bool:
        return self.ordering if isinstance(self.ordering, bool) else path in self._ordering

    def takes_any_key(self, path: str) -> bool:
        """Return whether *path* is a JSON field of which a condition may name any key."""
        return path in self._json_keys

    # The options by path, as paths of messages are looked up: by the names of fields, though an
    # option may say "pk" or "station_id".

    @cached_property
    def _lookups(self) -> Names:
        return {self._named(path): names for path, names in self.lookups.items()}

    @cached_property
    def _transforms(self) -> Names:
        return {self._named(path): names for path, names in self.transforms.items()}

    @cached_property
    def _ordering(self) -> frozenset[str]:
        assert not isinstance(self.ordering, bool)
        return frozenset(map(self._named, self.ordering))

    @cached_property
    def _json_keys(self) -> frozenset[str]:
        return frozenset(map(self._named, self.json_keys))

    def _named(self, path: str) -> str:
        model: Any = self.model
        names = []
        for part in path.split("__"):
            step = None if model is None else relation(model, part)
            names.append(part if step is None else step.name)
            model = step.related_model if step is not None and step.is_relation else None
        return "__".join(names)

    def check_operation(self, caller: Caller, operation: str) -> None:
        """Raise OperationNotAllowed or PermissionDenied unless *caller* may do it."""
        if operation not in self.operations:
            raise OperationNotAllowed(f"{self.model._meta.label} is not exposed for {operation}")
        self.check_permission(caller, operation)

    def check_permission(self, caller: Caller, operation: str) -> None:
        """Raise PermissionDenied unless *caller* has the permission for *operation*."""
        if self.permission is not None and not self.permission(
            caller.named(), operation, self.model
        ):
            raise PermissionDenied(f"no permission to {operation} {self.model._meta.label}")

    def is_restricted(self, caller: Caller, alias: str) -> bool:
        """Return whether there are rows of the model that *caller* may not see."""
        if self.rows is None:
            return False
        everything = self._all(caller, alias)
        return self.rows(caller.named(), everything) is not everything

    def visible(self, caller: Caller, alias: str) -> models.QuerySet[Any]:
        """Return the rows that *caller* may see, in a form that takes any operation."""
        return self._restricted(self.rows, caller, alias)

    def changeable(self, caller: Caller, alias: str) -> models.QuerySet[Any]:
        """Return the rows that *caller* may change or delete."""
        seen = self.visible(caller, alias)
        if self.writable_rows is None:
            return seen
        written = self._restricted(self.writable_rows, caller, alias)
        return seen.filter(models.Q(("pk__in", written.order_by().values("pk"))))

    def _all(self, caller: Caller, alias: str) -> models.QuerySet[Any]:
        manager = getattr(self.model, self.manager or self.model._meta.default_manager.name)
        if type(manager).get_queryset is not models.Manager.get_queryset:
            # The project's own may do anything.
            caller.named()
        found: models.QuerySet[Any] = manager.using(alias).all()
        return found

    def _restricted(self, rows: Rows | None, caller: Caller, alias: str) -> models.QuerySet[Any]:
        everything = self._all(caller, alias)
        if rows is None:
            return everything
        found = rows(caller.named(), everything)
        if not isinstance(found, models.QuerySet) or found.model is not self.model:
            raise ImproperlyConfigured(
                f"rows of {self.model._meta.label} returns a queryset of that model, not {found!r}"
            )
        query = found.query
        # What was joined, sliced or combined would change what the client's operations mean.
        if found is everything or not (
            query.is_sliced
            or query.combinator
            or query.distinct
            or query.annotations
            or len(query.alias_map) > 1
            or query.select_related
        ):
            return found
        return everything.filter(models.Q(("pk__in", found.values("pk"))))


def relation(model: type[models.Model], name: str) -> Any:
    """Return the field or relation of *model* that a path calls *name*; None if there is none."""
    opts = model._meta
    if name == "pk":
        return opts.pk
    try:
        return opts.get_field(name)
    except FieldDoesNotExist:
        pass
    return next((each for each in opts.concrete_fields if each.attname == name), None)
