"""`call`: manager methods that are exposed by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.db.models import Q as DjangoQ

from ..protocol import nodes
from ..protocol.errors import BadValue, DoesNotExist, MethodNotAllowed
from .called import returned
from .expressions import value
from .operations import open_scope, scope_on
from .registry import exposure_of
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
    return returned(scope, method(*args, **kwargs))


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
