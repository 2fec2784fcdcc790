"""A queryset that is being built from a tree, and what is known of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from django.db import models

from .exposure import Exposure
from .session import Session


@dataclass(frozen=True)
class Annotation:
    """An annotation: *name* is the queryset's for it, *paths* are those that it is made of."""

    name: str
    paths: frozenset[str]


@dataclass
class Column:
    """A column of values(): *label* is the message's name for it, *key* the queryset's."""

    label: str
    key: str
    is_json: bool = False


@dataclass
class Prefetch:
    """Related rows that are fetched beside those of the queryset, under *name*."""

    relation: Any
    name: str
    to_attr: bool = False
    # Their queryset; None: all that the principal may see.
    scope: Scope | None = None
    # What is fetched beside them in turn.
    inner: dict[str, Prefetch] = field(default_factory=dict)


@dataclass
class Scope:
    """The *queryset* of one tree, of rows that the principal may see.

    *outer* is the scope around a subquery.
    """

    session: Session
    exposure: Exposure
    alias: str
    queryset: models.QuerySet[Any]
    outer: Scope | None = None
    # Annotations by the names that the message gave them.
    annotations: dict[str, Annotation] = field(default_factory=dict)
    # The names of those that rows of the model have beside their fields.
    selected: list[str] = field(default_factory=list)
    # "model", or as values() and values_list() have it; then *columns* are those asked for.
    kind: str = "model"
    columns: list[Column] = field(default_factory=list)
    # The paths of defer() or, where it does not *defer*, of only(): Django's `deferred_loading`.
    loading: frozenset[str] = frozenset()
    defers: bool = True
    # The fields that the answer shall have.
    fields: tuple[str, ...] | None = None
    # The relations of select_related().
    related: list[str] = field(default_factory=list)
    prefetches: dict[str, Prefetch] = field(default_factory=dict)
    # Whether it is a union, an intersection or a difference.
    is_combined: bool = False
    # Whether nothing follows its rows in the transaction.
    is_last: bool = False
    # The paths that were named since somebody cleared the set.
    named: frozenset[str] = frozenset()
    # Whether an expression inside named the scope around.
    names_outer: bool = False
    # The relations that are joined under a condition, by the paths to them.
    joined: dict[str, str] = field(default_factory=dict)

    def commit_next(self) -> None:
        """Have the transaction end with the next statement, where nothing is to follow it."""
        if self.is_last and not self.prefetches and self.session.commit_next is not None:
            self.session.commit_next()

    def filtered(self, placed: str, make: Callable[[], models.FilteredRelation]) -> str:
        """Return the name of the relation at *placed*, joined as *make* says, once."""
        if placed not in self.joined:
            name = self.own_name()
            self.queryset = self.queryset.alias(**{name: make()})
            self.joined[placed] = name
        return self.joined[placed]

    def annotation_name(self, alias: str) -> str:
        """Return the queryset's name for the annotation *alias*: the same in all that are combined.

        Django names the columns of a union as its first queryset does, in each of them.
        """
        return self.session.own_names.setdefault(alias, self.own_name())

    def own_name(self) -> str:
        """Return a name for the queryset that no message can name."""
        return f"pgbackend_rpc_{next(self.session.numbers)}"
