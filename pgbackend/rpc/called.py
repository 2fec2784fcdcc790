"""What a method of the service that was called returns, as the client has it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from django.core.exceptions import FieldError

from . import rows
from .protocol import nodes


def returned(queryset: Any, found: Any) -> Any:
    """Return *found* with its rows as instances of the model of *queryset*, or as dictionaries."""
    match found:
        case nodes.Rows():
            if found.shape.model not in (None, queryset.query.label):
                made: list[Any] = rows.dictionaries(found)
            else:
                declared = _Declared(queryset.model, found.shape, dict(queryset.query.attributes))
                found = replace(
                    found, shape=declared.shape, rows=[declared.row(each) for each in found.rows]
                )
                made = rows.made(found, queryset, declared.attributes)
            return made[0] if found.kind == "instance" else made
        case list():
            return [returned(queryset, each) for each in found]
        case tuple():
            return tuple(returned(queryset, each) for each in found)
        case dict():
            return {rows.plain(key): returned(queryset, each) for key, each in found.items()}
    return rows.plain(found)


class _Declared:
    """What *model* has relations for of rows of one shape: a method may load more of them.

    *attributes* are those of prefetched rows by the names of their relations, and become more.
    Rows in an attribute that no one relation of the model is for are dictionaries there.
    """

    def __init__(self, model: Any, shape: nodes.Shape, attributes: dict[str, str]) -> None:
        self.attributes = attributes
        self._ends = len(shape.fields)
        self._related: list[tuple[int, _Declared]] = []
        self._prefetched: list[tuple[int, _Declared]] = []
        self._others: list[tuple[int, nodes.Shape]] = []
        names, related, prefetched = [], {}, []
        for place, (name, below) in enumerate(shape.related.items(), self._ends):
            field = _relation(model, name)
            if field is not None:
                inner = _Declared(field.related_model, below, attributes)
                self._related.append((place, inner))
                related[name] = inner.shape
        for place, each in enumerate(shape.prefetched, self._ends + len(shape.related)):
            if each.to_attr and each.name not in attributes:
                field = _leading_to(model, each.shape.model)
                if field is None:
                    self._others.append((place, each.shape))
                    names.append(each.name)
                    continue
                attributes[each.name] = field.name if field.concrete else field.get_accessor_name()
            field = _relation(model, attributes.get(each.name, each.name))
            if field is not None:
                inner = _Declared(field.related_model, each.shape, attributes)
                self._prefetched.append((place, inner))
                prefetched.append(replace(each, shape=inner.shape))
        self.shape: nodes.Shape = replace(
            shape,
            fields=(*shape.fields, *names),
            related=related,
            prefetched=tuple(prefetched),
        )

    def row(self, row: list[Any]) -> list[Any]:
        """Return what is left of *row*."""
        if len(row) == self._ends:
            return row
        return [
            *row[: self._ends],
            *(
                rows.dictionaries(nodes.Rows("model", shape, row[place]))
                for place, shape in self._others
            ),
            *(
                None if row[place] is None else inner.row(row[place])
                for place, inner in self._related
            ),
            *([inner.row(each) for each in row[place]] for place, inner in self._prefetched),
        ]


def _relation(model: Any, name: str) -> Any:
    try:
        return rows.relation(model, name)
    except FieldError:
        return None


def _leading_to(model: Any, label: str | None) -> Any:
    """Return the only relation of *model* to the service's model *label*; None: there is none."""
    found = [
        each
        for each in model._meta.get_fields()
        if each.is_relation
        and getattr(getattr(each.related_model, "Rpc", None), "label", None) == label
    ]
    return found[0] if len(found) == 1 else None
