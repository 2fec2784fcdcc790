"""The calls that ask for related rows: select_related and prefetch_related."""

from __future__ import annotations

from typing import Any

from ..protocol import nodes
from ..protocol.errors import BadValue, FieldNotAllowed
from .exposure import Exposure, relation
from .registry import exposure_of
from .scope import Prefetch, Scope

# Relations that one path may go over.
LONGEST = 8


def op_select_related(scope: Scope, op: nodes.Op) -> None:
    """Take the relations to one whose rows come with those of the model."""
    if op.kwargs or scope.kind != "model":
        raise BadValue("select_related takes names, and is not possible after values")
    if op.args == (None,):
        scope.related = []
        return
    names = list(op.args) or [
        each for each in scope.exposure.paths if _to_one(scope.exposure, each) is not None
    ]
    for each in names:
        if not isinstance(each, str):
            raise BadValue("select_related takes names")
        steps = each.split("__")
        if len(steps) > LONGEST:
            raise BadValue(f"select_related goes over {LONGEST} relations at most")
        for end in range(1, len(steps) + 1):
            path = "__".join(steps[:end])
            found = _to_one(scope.exposure, path) if path in scope.exposure.paths else None
            if found is None:
                raise FieldNotAllowed(f"{each!r} cannot be selected here")
            scope.session.check_entered(exposure_of(found.related_model))
            if path not in scope.related:
                scope.related.append(path)


def _to_one(exposure: Exposure, path: str) -> Any:
    """Return the last relation of *path* if all of them lead to one row; None otherwise."""
    model: Any = exposure.model
    field = None
    for part in path.split("__"):
        field = relation(model, part)
        if field is None or not (field.many_to_one or field.one_to_one) or field.name != part:
            return None
        model = field.related_model
    return field


def op_prefetch_related(scope: Scope, op: nodes.Op) -> None:
    """Take the relations whose rows are fetched beside those of the model.

    An argument is a path, or a tuple of a path, a queryset or None, and a name for the rows.
    """
    if op.kwargs or scope.kind != "model":
        raise BadValue("prefetch_related takes paths, and is not possible after values")
    if op.args == (None,):
        scope.prefetches = {}
        return
    for each in op.args:
        path, tree, name = (
            each if isinstance(each, tuple) and len(each) == 3 else (each, None, None)
        )
        if not isinstance(path, str) or not isinstance(tree, nodes.Delayed | None):
            raise BadValue("prefetch_related takes paths, or a path, a queryset and a name")
        if name is not None and not isinstance(name, str):
            raise BadValue("the name of prefetched rows is text")
        found = prefetch_by(scope, path, name, is_chosen=tree is not None)
        if tree is not None:
            _choose(scope, found, path, tree)


def prefetch_by(scope: Scope, path: str, name: str | None, *, is_chosen: bool = True) -> Prefetch:
    """Add the prefetch of *path*, and those on its way; return it.

    Its rows are an attribute *name*; None: the relation's own. With *is_chosen* they will be those
    of a queryset, so it must not be there yet.
    """
    steps = path.split("__")
    if len(steps) > LONGEST:
        raise BadValue(f"prefetch_related goes over {LONGEST} relations at most")
    exposure, prefetches = scope.exposure, scope.prefetches
    found: Prefetch | None = None
    for number, step in enumerate(steps):
        last = number == len(steps) - 1
        known = prefetches.get(step)
        if known is not None and not (last and (is_chosen or name is not None)):
            found = known
        else:
            found = _prefetch(exposure, step, name if last else None)
            if found.name in prefetches:
                raise BadValue(f"{found.name!r} is prefetched twice")
            prefetches[found.name] = found
        exposure = exposure_of(found.relation.related_model)
        scope.session.check_entered(exposure)
        prefetches = found.inner
    assert found is not None
    return found


def _choose(scope: Scope, prefetch: Prefetch, path: str, tree: nodes.Delayed) -> None:
    """Have the rows of *prefetch* be those of *tree*."""
    exposure = exposure_of(prefetch.relation.related_model)
    if exposure_of(tree.tree.model) is not exposure:
        raise BadValue(f"{path!r} leads to {exposure.model._meta.label}")
    inner: Scope = scope.session.open_scope(scope.session, tree.tree, scope.alias, None)
    prefetch.scope = inner
    if inner.kind != "model" or inner.queryset.query.is_sliced:
        raise BadValue("what is prefetched are whole rows, and no slice of them")


def _prefetch(exposure: Exposure, step: str, name: str | None) -> Prefetch:
    """Return the prefetch of one relation, which has to be among the model's paths."""
    field = relation(exposure.model, _query_name(exposure, step))
    if field is None or not field.is_relation or field.name not in exposure.paths:
        raise FieldNotAllowed(f"{exposure.model._meta.label} has no {step!r} to prefetch")
    return Prefetch(field, name or step, name is not None)


def _query_name(exposure: Exposure, step: str) -> str:
    """Return the name that queries have for the relation whose attribute is *step*."""
    for each in exposure.model._meta.related_objects:
        if each.get_accessor_name() == step:
            return str(each.name)
    return step
