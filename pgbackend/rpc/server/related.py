"""The ends that change which rows are related: many-to-many, and the far side of foreign keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from django.core.exceptions import ValidationError
from django.db.models import Q as DjangoQ

from ..protocol import nodes
from ..protocol.errors import BadValue, DoesNotExist, FieldNotAllowed
from .exposure import relation
from .registry import exposure_of
from .scope import Scope
from .written import Written


class _Related:
    """The rows that one row of *scope* is related to, as far as the principal may see them."""

    def __init__(self, scope: Scope, end: nodes.Op, number: int, options: Iterable[str]) -> None:
        if len(end.args) != number or end.kwargs.keys() - set(options):
            raise BadValue(f"{end.name} takes {number} arguments")
        raw, name = end.args[0], end.args[1]
        self.scope = scope
        found = relation(scope.exposure.model, name) if isinstance(name, str) else None
        if (
            found is None
            or not (found.many_to_many or found.one_to_many)
            or found.name not in scope.exposure.writable
        ):
            raise FieldNotAllowed(f"{scope.exposure.model._meta.label} has no relation {name!r}")
        self.relation: Any = found
        self.written = Written(scope)
        key = self.written.key(raw)
        self.instance = scope.queryset.order_by().filter(DjangoQ(("pk", key))).first()
        if self.instance is None:
            raise DoesNotExist("no row matches")
        self.exposure = exposure_of(self.relation.related_model)
        session = scope.session
        if self.relation.one_to_many:
            # The rows behind it change: their foreign keys do.
            self.exposure.check_operation(session, "update")
            if self.relation.field.name not in self.exposure.writable:
                raise FieldNotAllowed(f"{name!r} cannot be changed")
            self.rows = self.exposure.changeable(session, scope.alias)
        else:
            scope.session.check_entered(self.exposure)
            self.rows = self.exposure.visible(session, scope.alias)
        accessor = self.relation.get_accessor_name() if found.auto_created else name
        self.manager: Any = getattr(self.instance, accessor)

    def given(self, end: nodes.Op) -> set[Any]:
        """Return the keys of the rows that *end* names; raise ValidationError."""
        raw = end.args[2]
        if not isinstance(raw, list | tuple | set | frozenset):
            raise BadValue(f"{end.name} takes keys")
        own = self.exposure.model._meta.pk
        inside = Scope(self.scope.session, self.exposure, self.scope.alias, self.rows)
        keys = {Written(inside).key(each) for each in raw}
        self.written.check_number(len(keys))
        found = set(self.rows.filter(DjangoQ(("pk__in", list(keys)))).values_list("pk", flat=True))
        if found != keys:
            raise ValidationError(f"a row with this {own.name} does not exist", "invalid")
        return keys

    def current(self, among: set[Any] | None = None) -> set[Any]:
        """Return the keys of the rows that are related now, or of those *among* some keys.

        Of all there are no more than a write may change beside as many that stay.
        """
        related = self.manager.using(self.scope.alias).order_by().values("pk")
        rows = (
            self.rows.order_by().filter(DjangoQ(("pk__in", related))).values_list("pk", flat=True)
        )
        if among is not None:
            return set(rows.filter(DjangoQ(("pk__in", list(among)))))
        most = self.scope.session.max_affected(self.scope.exposure)
        return set(rows[: 2 * most + 1])

    def add(self, keys: set[Any], defaults: dict[str, Any] | None = None) -> None:
        if not keys:
            return
        if self.relation.one_to_many:
            rows = self.rows.filter(DjangoQ(("pk__in", list(keys))))
            rows.order_by().update(**{self.relation.field.name: self.instance})
        else:
            self.manager.add(*keys, through_defaults=defaults)

    def remove(self, keys: set[Any]) -> None:
        if not keys:
            return
        if self.relation.one_to_many:
            if not self.relation.field.null:
                raise BadValue("rows that must be related cannot be removed")
            rows = self.rows.filter(DjangoQ(("pk__in", list(keys))))
            rows.order_by().update(**{self.relation.field.name: None})
        else:
            self.manager.remove(*keys)


def _defaults(found: _Related, end: nodes.Op) -> dict[str, Any] | None:
    """Return the values for rows of the table between, which has to be exposed for them."""
    raw = end.kwargs.get("through_defaults")
    if raw is None:
        return None
    if not isinstance(raw, dict) or not found.relation.many_to_many:
        raise BadValue("through_defaults is $dict")
    field = found.relation.field if found.relation.auto_created else found.relation
    exposure = exposure_of(field.remote_field.through)
    exposure.check_operation(found.scope.session, "create")
    inside = Scope(found.scope.session, exposure, found.scope.alias, found.rows)
    written = Written(inside)
    return {
        written.field(name).attname: written.value(written.field(name), each)
        for name, each in raw.items()
    }


def _add(scope: Scope, end: nodes.Op) -> None:
    found = _Related(scope, end, 3, {"through_defaults"})
    found.add(found.given(end), _defaults(found, end))


def _remove(scope: Scope, end: nodes.Op) -> None:
    found = _Related(scope, end, 3, {"through_defaults"})
    found.remove(found.current(found.given(end)))


def _set(scope: Scope, end: nodes.Op) -> None:
    found = _Related(scope, end, 3, {"through_defaults", "clear"})
    given, current = found.given(end), found.current()
    # With clear the rows between the two are made anew.
    kept = set() if end.kwargs.get("clear") else given & current
    found.written.check_number(len((given | current) - kept))
    found.remove(current - kept)
    found.add(given - kept, _defaults(found, end))


def _clear(scope: Scope, end: nodes.Op) -> None:
    found = _Related(scope, end, 2, ())
    current = found.current()
    found.written.check_number(len(current))
    found.remove(current)


RELATED: Mapping[str, Callable[[Scope, nodes.Op], None]] = {
    "related_add": _add,
    "related_remove": _remove,
    "related_set": _set,
    "related_clear": _clear,
}
