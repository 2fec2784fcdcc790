"""`call`: manager methods that are exposed by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from django.db import models
from django.db.models import Q as DjangoQ

from ..protocol import nodes
from ..protocol.errors import BadValue, DoesNotExist, MethodNotAllowed, TooManyRows
from .exposure import Exposure
from .expressions import value
from .operations import open_scope, scope_on
from .registry import exposure_of
from .rows import rows_of
from .scope import Scope
from .session import Session


def method_of(tree: nodes.Tree) -> str:
    """Return the name of the method that *tree* calls; raise BadValue."""
    args = tree.end.args
    if not args or not isinstance(args[0], str):
        raise BadValue("call takes the name of a method")
    return args[0]


def call(session: Session, tree: nodes.Tree, alias: str) -> Any:
    """Return what the method gives; raise MethodNotAllowed or PermissionDenied."""
    exposure = exposure_of(tree.model)
    # The method is the project's.
    session.named()
    name = method_of(tree)
    if name not in exposure.methods:
        raise MethodNotAllowed(f"{exposure.model._meta.label} has no method {name!r} here")
    exposure.check_permission(session, name)
    if exposure.methods[name]:
        rows = exposure.visible(session, alias)
    else:
        rows = exposure.changeable(session, alias)
    scope = scope_on(session, tree, alias, rows)
    method = getattr(scope.queryset, name, None)
    if method is None:
        # `checking` lets this be only where all rows may be seen.
        manager = getattr(
            exposure.model, exposure.manager or exposure.model._meta.default_manager.name
        )
        method = getattr(manager.db_manager(alias), name)
    args = [_argument(scope, each) for each in tree.end.args[1:]]
    kwargs = {key: _argument(scope, each) for key, each in tree.end.kwargs.items()}
    return _sent(session, method(*args, **kwargs), alias)


def _argument(scope: Scope, raw: Any) -> Any:
    """Return *raw* as a method is given it: values, instances and querysets; no expressions."""
    if isinstance(raw, nodes.Object):
        exposure = exposure_of(raw.model)
        exposure.check_operation(scope.session, "read")
        visible = exposure.visible(scope.session, scope.alias)
        found = visible.filter(DjangoQ(("pk", value(scope, raw.pk)))).first()
        if found is None:
            raise DoesNotExist("no row matches an argument")
        return found
    if isinstance(raw, nodes.Delayed):
        return open_scope(scope.session, raw.tree, scope.alias).queryset
    if isinstance(raw, nodes.Node) and not isinstance(raw, nodes.Ref | nodes.Value):
        raise BadValue("a method takes values, no expressions")
    if isinstance(raw, list | tuple):
        return type(raw)([_argument(scope, each) for each in raw])
    if isinstance(raw, Mapping):
        return {key: _argument(scope, each) for key, each in raw.items()}
    return value(scope, raw)


def _sent(session: Session, found: Any, alias: str) -> Any:
    """Return what a method gave as it is sent: rows as far as they may be read.

    Lists, tuples and dictionaries stay what they are; an instance in them that may not be seen is
    None, and left out of a list of instances alone. A set with instances is sent as a list.
    """
    if isinstance(found, models.Model):
        rows = _rows(session, exposure_of(type(found)), alias, [found.pk])
        return replace(rows, kind="instance") if rows.rows else None
    if isinstance(found, set | frozenset) and any(isinstance(each, models.Model) for each in found):
        # What travels has no set of rows.
        found = list(found)
    if isinstance(found, list | tuple):
        kinds = {type(each) for each in found}
        kind = kinds.pop() if len(kinds) == 1 else None
        if isinstance(found, list) and kind is not None and issubclass(kind, models.Model):
            return _rows(session, exposure_of(kind), alias, [each.pk for each in found])
        sent = [_sent(session, each, alias) for each in found]
        return sent if isinstance(found, list) else tuple(sent)
    if isinstance(found, dict):
        return {key: _sent(session, each, alias) for key, each in found.items()}
    if isinstance(found, models.QuerySet):
        if found._fields is not None:
            return _limited(session, found)
        exposure = exposure_of(found.model)
        if not session.is_restricted(exposure, alias):
            return rows_of(Scope(session, exposure, alias, found), found)
        most = session.max_rows(exposure)
        return _rows(session, exposure, alias, list(found.values_list("pk", flat=True)[: most + 1]))
    return found


def _limited(session: Session, found: Any) -> list[Any]:
    """Return the values that a method has chosen: it answers for them."""
    most = session.limits.max_rows - session.rows
    values = list(found[: most + 1])
    if len(values) > most:
        limit = session.limits.max_rows
        raise TooManyRows(f"more than {limit} rows", {"max_rows": limit})
    session.rows += len(values)
    return values


def _rows(session: Session, exposure: Exposure, alias: str, keys: list[Any]) -> nodes.Rows:
    """Return the rows with *keys*, in their order, without those that may not be seen."""
    visible = exposure.visible(session, alias).filter(DjangoQ(("pk__in", set(keys))))
    rows = rows_of(Scope(session, exposure, alias, visible), visible)
    place = rows.shape.fields.index(exposure.model._meta.pk.attname)
    by_key = {row[place]: row for row in rows.rows}
    chosen = [by_key[key] for key in keys if key in by_key]
    session.count_rows(len(chosen) - len(by_key), exposure)
    return replace(rows, rows=chosen)
