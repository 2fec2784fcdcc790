"""Querysets as JSON: `encode_tree` and `decode_tree`. Their form is checked, not their meaning."""

from __future__ import annotations

from typing import Any

from .limits import Limits
from .nodes import Tree
from .reading import Reader
from .writing import Default, Writer


def encode_tree(tree: Tree, default: Default | None = None) -> dict[str, Any]:
    """Return *tree* as JSON; *default* and errors are those of `encode`."""
    return Writer(default).tree(tree)


def decode_tree(item: Any, limits: Limits | None = None, *, index: int = 0) -> Tree:
    """Return the tree that *item*, parsed JSON, stands for.

    *index* is its place in the message: a reference in it must lead to an earlier one. Raise
    `Malformed`, `OperationNotAllowed`, `AggregateNotAllowed` or `TransformNotAllowed` for names
    that this version does not have, and `TooManyNodes`.
    """
    reader = Reader(limits)
    reader.index = index
    return reader.tree(item)
