"""What a service says it exposes: one JSON Schema for each model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from django.db import connections

from .protocol import nodes
from .results import RpcFuture


@dataclass(frozen=True)
class Described:
    """What the principal may do with one model, by the service's names."""

    label: str
    readable: frozenset[str]
    # Empty where nothing may be written.
    writable: frozenset[str]
    # The schema of each field, by its attribute's name, in the service's order.
    properties: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    relations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    methods: tuple[str, ...] = ()


def described(alias: str) -> dict[str, Described]:
    """Ask the service of *alias*; return what it exposes, by "app.Model".

    Raise `RemoteError` where it does not answer.
    """
    return {label: read(label, schema) for label, schema in schemas(alias).items()}


def schemas(alias: str) -> Mapping[str, Any]:
    """Ask the service of *alias*; return its JSON Schemas by "app.Model"."""
    tree = nodes.Tree("", (), nodes.Op("describe"))
    future: RpcFuture[Any] = connections[alias].future(
        tree, convert=lambda found: found, model=None
    )
    found: Mapping[str, Any] = future.result()["models"]
    return found


def read(label: str, schema: Mapping[str, Any]) -> Described:
    """Return what *schema* says."""
    properties = schema.get("properties", {})
    return Described(
        label=label,
        readable=frozenset(name for name, each in properties.items() if not each.get("writeOnly")),
        writable=frozenset(name for name, each in properties.items() if not each.get("readOnly")),
        properties=properties,
        relations=schema.get("x-relations", {}),
        methods=tuple(schema.get("x-methods", ())),
    )
