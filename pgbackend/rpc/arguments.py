"""The arguments of a queryset's methods, as Django checks them and as they are sent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.db import NotSupportedError, models

from . import recording


def names_of(field: Any) -> tuple[str, ...]:
    """Return the names of a field that an annotation must not have."""
    return (field.name, field.attname) if hasattr(field, "attname") else (field.name,)


def check_combined(queryset: Any, name: str) -> None:
    """Raise NotSupportedError for a method that Django has not after a union and its like."""
    if queryset.query.combinator:
        raise NotSupportedError(
            f"Calling QuerySet.{name}() after {queryset.query.combinator}() is not supported."
        )


def check_expressions(values: Iterable[Any], name: str) -> None:
    """Raise TypeError for what is no expression."""
    wrong = sorted(str(each) for each in values if not hasattr(each, "resolve_expression"))
    if wrong:
        raise TypeError(f"QuerySet.{name}() received non-expression(s): {', '.join(wrong)}.")


def by_alias(args: Any, kwargs: Any, what: str) -> dict[str, Any]:
    """Return expressions by their aliases; *args* by Django's default ones."""
    given: dict[str, Any] = {}
    for each in args:
        try:
            alias = each.default_alias
        except (AttributeError, TypeError):
            raise TypeError(f"Complex {what} require an alias") from None
        if alias in kwargs:
            raise ValueError(
                f"The named annotation '{alias}' conflicts with the default name for another"
                " annotation."
            )
        given[alias] = each
    return {**given, **kwargs}


def column(item: Any) -> Any:
    """Return what `values` sends of a name or of an expression."""
    return str(item) if isinstance(item, str) else recording.expression(item)


def columns(expressions: dict[str, Any]) -> dict[str, Any]:
    """Return what `values` sends of expressions by alias."""
    check_expressions(expressions.values(), "values")
    return {alias: recording.expression(each) for alias, each in expressions.items()}


def prefetch(lookup: Any, attributes: dict[str, str]) -> Any:
    """Return what is sent of a path or a Prefetch; note in *attributes* where its rows go."""
    if not isinstance(lookup, models.Prefetch):
        return str(lookup)
    path = lookup.prefetch_through
    inner = None
    if lookup.queryset is not None:
        inner = recording.queryset(lookup.queryset)
        attributes.update(lookup.queryset.query.attributes)
    if lookup.to_attr:
        attributes[lookup.to_attr] = path.rpartition("__")[2]
    return path, inner, lookup.to_attr or None
