"""The values of a write: fields that may be set, rows that may be named, and their validation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from django.core.exceptions import ValidationError
from django.db.models import Q as DjangoQ

from ..protocol import nodes
from ..protocol.errors import BadValue, FieldNotAllowed, TooManyAffected
from .exposure import relation
from .expressions import expression, value
from .registry import exposure_of
from .rows import sent_value
from .scope import Scope


class Written:
    """What one write sets, on the model of *scope*."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.exposure = scope.exposure
        # The values of foreign keys that were looked up, by field and what was given.
        self._keys: dict[tuple[str, Any], Any] = {}

    def check_number(self, number: int) -> None:
        """Raise TooManyAffected for more rows than a write may change."""
        most = self.scope.session.max_affected(self.exposure)
        if number > most:
            raise TooManyAffected(f"more than {most} rows", {"max_affected": most})

    def field(self, name: Any) -> Any:
        """Return the field with a column that *name* names; raise FieldNotAllowed."""
        found = relation(self.exposure.model, name) if isinstance(name, str) else None
        if found is None or not found.concrete or found.many_to_many:
            found = None
        if found is None or found.name not in self.exposure.writable:
            raise FieldNotAllowed(f"{self.exposure.model._meta.label} has no field {name!r} to set")
        return found

    def key(self, raw: Any) -> Any:
        """Return the primary key that *raw* stands for."""
        own = self.exposure.model._meta.pk
        found = value(self.scope, raw, own)
        if hasattr(found, "resolve_expression"):
            raise BadValue("a primary key is a value")
        return None if found is None else own.to_python(found)

    def value(self, field: Any, raw: Any) -> Any:
        """Return what *raw* stands for as the value of *field*; raise ValidationError."""
        if isinstance(raw, nodes.Ref | nodes.Object | nodes.Value) or not isinstance(
            raw, nodes.Node
        ):
            if field.is_relation:
                return self._related(field, raw)
            found = value(self.scope, raw, field)
            if not hasattr(found, "resolve_expression"):
                return found
        raise BadValue(f"{field.name} takes a value")

    def _related(self, field: Any, raw: Any) -> Any:
        """Return the value of a foreign key to a row that the principal may see."""
        by_key = isinstance(raw, nodes.Object)
        found = value(self.scope, raw, field)
        if found is None:
            return None
        target = field.target_field
        try:
            known = (f"{field.name} {by_key}", found)
            if known not in self._keys:
                exposure = exposure_of(field.related_model)
                self.scope.session.check_entered(exposure)
                visible = exposure.visible(self.scope.session, self.scope.alias)
                path = "pk" if by_key else target.attname
                rows = visible.order_by().filter(DjangoQ((path, found)))
                self._keys[known] = rows.values_list(target.attname, flat=True).first()
        except TypeError:
            raise BadValue(f"{field.name} takes a key") from None
        if self._keys[known] is None:
            # Alike for what is not there and what may not be seen.
            params = {
                "model": target.model._meta.verbose_name,
                "field": target.name,
                "value": found,
            }
            text = "%(model)s instance with %(field)s %(value)r does not exist."
            raise ValidationError({field.name: ValidationError(text, "invalid", params)})
        return self._keys[known]

    def new(self, named: Mapping[str, Any]) -> Any:
        """Return a new instance, not saved, with the values of *named*."""
        instance = self.exposure.model()
        self.set(instance, named, expressions=False)
        return instance

    def set(
        self, instance: Any, named: Mapping[str, Any], *, expressions: bool = True
    ) -> list[Any]:
        """Give *instance* the values of *named*; return their fields."""
        fields = []
        for name, raw in named.items():
            field = self.field(name)
            is_expression = isinstance(raw, nodes.Operation | nodes.Function | nodes.F | nodes.Case)
            if is_expression and expressions and not field.is_relation:
                setattr(instance, field.attname, expression(self.scope, raw))
            else:
                setattr(instance, field.attname, self.value(field, raw))
            fields.append(field)
        return fields

    def clean(self, instance: Any, fields: Iterable[Any] | None = None) -> None:
        """Validate *instance*, of which *fields* were set; None: all that are writable.

        Raise ValidationError. What is not set from outside is not looked at.
        """
        if not self.exposure.full_clean:
            return
        named = self.exposure.writable if fields is None else [each.name for each in fields]
        names = set(named)
        opts = self.exposure.model._meta
        unset = {each.name for each in opts.fields if each.name not in names}
        for each in opts.concrete_fields:
            if hasattr(instance.__dict__.get(each.attname), "resolve_expression"):
                unset.add(each.name)
        if fields is None:
            # A column that may be NULL, and was not given, is: forms ask for a value, rows do not.
            unset |= {
                each.name
                for each in opts.concrete_fields
                if each.null and getattr(instance, each.attname) is None
            }
        # The database gives new rows their keys.
        unset |= {
            each.name for each in opts.concrete_fields if each.primary_key and not instance.pk
        }
        instance.full_clean(exclude=unset)

    def cleaned(self, field: Any, found: Any) -> Any:
        """Return *found*, validated as the value of *field* for rows that are not loaded."""
        if not self.exposure.full_clean or field.is_relation:
            if field.is_relation and found is None and not field.null:
                null = ValidationError(field.error_messages["null"], "null")
                raise ValidationError({field.name: null})
            return found
        try:
            return field.clean(found, None)
        except ValidationError as error:
            raise ValidationError({field.name: error}) from error

    def sent(self, instances: list[Any]) -> nodes.Rows:
        """Return new rows as they are sent: their keys, and what of them may be read."""
        fields = [
            each
            for each in self.exposure.columns
            if each.primary_key
            or ("read" in self.exposure.operations and each.name in self.exposure.writable)
        ]
        opts = self.exposure.model._meta
        shape = nodes.Shape(
            opts.label, tuple(each.attname for each in fields), pk=(opts.pk.attname,)
        )
        rows = [
            [sent_value(each, getattr(row, each.attname)) for each in fields] for row in instances
        ]
        self.scope.session.count_rows(len(rows), self.exposure)
        return nodes.Rows("model", shape, rows)
