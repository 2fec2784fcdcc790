"""Reads by primary key: those of one message that differ by their keys alone are one statement.

The ORM makes and compiles a query for each ``get()``, which costs more than the row. Reads that are
alike are one query here, ``filter(pk__in=...)``, made as that of a single one is: with the same
checks, predicates and columns. Each read then has its own outcome. Where the rows of one read could
depend on the others, or anything fails, each is read by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from django.db import connections
from django.db.models import IntegerField, QuerySet, UUIDField
from django.db.models.sql import Query

from ..protocol import nodes
from ..protocol.errors import RemoteError
from ..protocol.json_text import dumped
from ..protocol.writing import Writer
from .exposure import Exposure
from .operations import conditions_of, open_scope
from .paths import resolve
from .reads import one
from .registry import exposure_of
from .rows import fetch_by_key
from .scope import Scope
from .session import Session

# The calls of a tree that choose among the rows, or the columns of each, without looking at others.
_OPERATIONS = frozenset(
    {"all", "filter", "exclude", "only", "defer", "order_by", "reverse", "select_related"}
)

# What a queryset is asked for here: a project's class of querysets may have its own.
_METHODS = ("filter", "order_by", "values_list", "__getitem__", "__iter__")

# What alike reads have in common: model, fields, the path of the key, and the other calls, as text.
Kind = tuple[str, tuple[str, ...] | None, str, str]


class Apart(Exception):
    """A statement for several reads has failed: its transaction ends, and each is read alone."""


@dataclass
class _Alike:
    """Reads of one kind: *tree* is one of them without the condition on the key."""

    exposure: Exposure
    tree: nodes.Tree
    path: str
    # By the places of their trees.
    keys: dict[int, Any] = field(default_factory=dict)
    shape: nodes.Shape = field(default_factory=nodes.Shape)
    rows: Mapping[Any, list[list[Any]]] = field(default_factory=dict)

    def answer(self, session: Session, index: int) -> nodes.Rows:
        """Return the one row that the tree *index* asks for; raise as ``get()`` does."""
        self.exposure.check_operation(session, "read")
        # As many as a single read fetches.
        rows = self.rows.get(self.keys[index], [])[:2]
        session.count_rows(len(rows), self.exposure)
        return one(self.exposure, nodes.Rows("model", self.shape, rows))


@dataclass(frozen=True)
class _Model:
    """What is known of a message's model: *is_key* tells whether a value is a key of it."""

    exposure: Exposure
    alias: str
    names: frozenset[str]
    is_key: Callable[[Any], bool]


class Ahead:
    """Reads the rows of several trees of a message when the first of them has its turn.

    *alias_of* returns the database of a tree.
    """

    def __init__(
        self,
        session: Session,
        trees: tuple[nodes.Tree, ...],
        alias_of: Callable[[nodes.Tree], str | None],
    ) -> None:
        self._session = session
        self._trees = trees
        self._alias_of = alias_of
        self._models: dict[str, _Model | None] = {}
        self._found: dict[int, _Alike] = {}
        # The trees before this one were looked at.
        self._end = 0
        self._is_off = len(trees) < 2

    def look(self, index: int, alias: str) -> None:
        """Read the rows of the tree *index* and of those that follow, where some are alike.

        Raise Apart where a statement failed.
        """
        if self._is_off or index < self._end:
            return
        for each in self._alike_from(index, alias):
            try:
                scope = open_scope(self._session, each.tree, alias)
                found = _fetched(scope, each)
            except RemoteError:
                # Each meets the error by itself.
                continue
            except Exception as error:
                self._is_off = True
                raise Apart from error
            if found is not None:
                each.shape, each.rows = found
                self._found.update(dict.fromkeys(each.keys, each))

    def __contains__(self, index: int) -> bool:
        return index in self._found

    def take(self, index: int) -> nodes.Rows:
        """Return the result of the tree *index*; raise as its read would."""
        return self._found.pop(index).answer(self._session, index)

    def _alike_from(self, index: int, alias: str) -> list[_Alike]:
        """Return the reads of each kind that several trees from *index* on are of.

        They end where another tree comes: a method of the project's, or a lock, has to be before
        the reads that follow it.
        """
        found: dict[Kind, _Alike] = {}
        # No more rows than the message may have.
        last = min(len(self._trees), index + self._session.limits.max_rows - self._session.rows)
        self._end = index + 1
        for place in range(index, last):
            tree = self._trees[place]
            model = self._model(tree)
            if model is None or model.alias != alias:
                break
            try:
                read = _read(tree, model)
                if read is None:
                    break
                key, path, rest = read
                kind = (tree.model, tree.fields, path, _written(rest) if rest else "")
            except RemoteError:
                break
            if kind not in found:
                plain = nodes.Tree(tree.model, rest, tree.end, tree.fields)
                found[kind] = _Alike(model.exposure, plain, path)
            found[kind].keys[place] = key
            self._end = place + 1
        return [each for each in found.values() if len(each.keys) > 1]

    def _model(self, tree: nodes.Tree) -> _Model | None:
        """Return what is known of the tree's model; None where none of its reads is merged."""
        if tree.model not in self._models:
            try:
                self._models[tree.model] = _model_of(tree, self._alias_of(tree))
            except Exception:
                # The tree meets the error by itself.
                self._models[tree.model] = None
        return self._models[tree.model]


def _model_of(tree: nodes.Tree, alias: str | None) -> _Model | None:
    exposure = exposure_of(tree.model)
    pk = exposure.model._meta.pk
    assert pk is not None
    is_key = None if alias is None else _key_test(pk, alias)
    if alias is None or is_key is None:
        return None
    return _Model(exposure, alias, frozenset({"pk", pk.name, pk.attname}), is_key)


def _key_test(pk: Any, alias: str) -> Callable[[Any], bool] | None:
    """Return what tells whether a value is one that rows have in *pk*, without any conversion."""
    if type(pk).__module__ != IntegerField.__module__:
        return None
    if isinstance(pk, UUIDField):
        return lambda value: type(value) is UUID
    if not isinstance(pk, IntegerField):
        return None
    lowest, highest = connections[alias].ops.integer_field_range(pk.get_internal_type())
    if lowest is None or highest is None:
        return None
    return lambda value: type(value) is int and lowest <= value <= highest


def _read(tree: nodes.Tree, model: _Model) -> tuple[Any, str, tuple[nodes.Op, ...]] | None:
    """Return the key of a ``get()`` by primary key, its path, and the tree's other calls, or None.

    Raise a RemoteError for some trees that are refused.
    """
    end = tree.end
    if end.name != "get" or end.args or end.kwargs:
        return None
    if any(op.name not in _OPERATIONS for op in tree.ops):
        return None
    for place, op in enumerate(tree.ops):
        if op.name != "filter":
            continue
        condition = conditions_of(op)
        if condition.connector != "and" or condition.negated:
            continue
        for number, child in enumerate(condition.children):
            if isinstance(child, tuple) and child[0] in model.names and model.is_key(child[1]):
                path, key = child
                left = (*condition.children[:number], *condition.children[number + 1 :])
                others = (nodes.Op("filter", (nodes.Q("and", left),)),) if left else ()
                return key, path, (*tree.ops[:place], *others, *tree.ops[place + 1 :])
    return None


def _written(ops: tuple[nodes.Op, ...]) -> str:
    """Return calls as they are sent: no two different ones are written alike, as 1 and true are."""
    return dumped(Writer().tree(nodes.Tree("a.A", ops)))


def _fetched(
    scope: Scope, alike: _Alike
) -> tuple[nodes.Shape, Mapping[Any, list[list[Any]]]] | None:
    """Return the shape and the rows of each key; None where each has to be read by itself."""
    # Raises as the condition of a single read does.
    path = resolve(scope, alike.path, lookup=True)
    pk = scope.exposure.model._meta.pk
    if path.field is not pk or path.transforms or path.entered or path.lookup != "exact":
        return None
    queryset = scope.queryset
    query = queryset.query
    if (
        type(query) is not Query
        or any(getattr(type(queryset), each) is not getattr(QuerySet, each) for each in _METHODS)
        or query.distinct
        or query.combinator
        or query.is_sliced
        or query.select_for_update
        or query.annotations
        or query.extra
        or query.group_by is not None
        or scope.kind != "model"
        or scope.prefetches
    ):
        return None
    return fetch_by_key(scope, set(alike.keys.values()))
