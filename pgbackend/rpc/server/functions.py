"""The aggregates, functions and operators that messages may name, as Django's classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.contrib.postgres import aggregates as postgres
from django.db.models import aggregates, functions
from django.db.models.expressions import Combinable

from ..protocol.names import AGGREGATES, FUNCTIONS

# Those that take more than expressions, or that not all versions of Django have in one place.
STRANGE_AGGREGATES = frozenset({"StringAgg"})


def _class_of(name: str) -> Any:
    return getattr(aggregates, name, None) or getattr(postgres, name, None)


AGGREGATE_CLASSES: Mapping[str, Any] = {
    name: found
    for name in sorted(AGGREGATES - STRANGE_AGGREGATES)
    if (found := _class_of(name)) is not None
}

# Their results are no longer than what they are given, but for Replace; see `Exposure.functions`.
FUNCTION_CLASSES: Mapping[str, Any] = {
    name: found for name in sorted(FUNCTIONS) if (found := getattr(functions, name)) is not None
}

OPERATORS: Mapping[str, str] = {
    "+": Combinable.ADD,
    "-": Combinable.SUB,
    "*": Combinable.MUL,
    "/": Combinable.DIV,
    "%": Combinable.MOD,
    "^": Combinable.POW,
    "&": Combinable.BITAND,
    "|": Combinable.BITOR,
    "#": Combinable.BITXOR,
    "<<": Combinable.BITLEFTSHIFT,
    ">>": Combinable.BITRIGHTSHIFT,
}
