"""The query of a recorded queryset: the calls instead of SQL."""

from __future__ import annotations

from typing import Any

from django.db import NotSupportedError
from django.db.models import sql

from .protocol import nodes


class RecordedQuery(sql.Query):
    """Hold what was called on a queryset, in order.

    Django's own attributes are kept where its code reads them from outside: limits, ordering,
    distinct, select_related, combinator and emptiness. Whatever would make SQL of this query ends
    at `get_compiler`, which raises NotSupportedError.
    """

    def __init__(self, model: Any, alias_cols: bool = True) -> None:
        super().__init__(model, alias_cols)
        self.recorded: tuple[nodes.Op, ...] = ()
        # The `to_attr` of each Prefetch that has one, with the name of its relation.
        self.attributes: dict[str, str] = {}
        # A related manager's first filter and the next one are one filter, as in Django.
        self.joins_next = False

    def __str__(self) -> str:
        calls = "".join(f".{op.name}({_shown(op)})" for op in self.recorded)
        return f"{self.label}{calls}"

    @property
    def label(self) -> str:
        """The service's name of the model, "app.Model"."""
        return str(self.model.Rpc.label)

    def chain(self, klass: Any = None) -> RecordedQuery:
        """Return a copy for the next call."""
        joins_next = self.filter_is_sticky
        made: RecordedQuery = super().chain(klass)
        made.joins_next = joins_next
        return made

    def record(self, name: str, /, *args: Any, **kwargs: Any) -> None:
        """Add a call."""
        self.recorded = (*self.recorded, nodes.Op(name, args, kwargs))

    def record_condition(self, name: str, condition: nodes.Q) -> None:
        """Add a filter or an exclude; together with the one before where Django joins them."""
        last = self.recorded[-1] if self.recorded else None
        if self.joins_next and last is not None and name == last.name == "filter":
            condition = nodes.Q("and", (last.args[0], condition))
            self.recorded = self.recorded[:-1]
        self.record(name, condition)

    def tree(
        self, end: nodes.Op | None = None, fields: tuple[str, ...] | None = None
    ) -> nodes.Tree:
        """Return the tree of what was recorded; without *end* that of a queryset inside another."""
        return nodes.Tree(self.label, self.recorded, end or nodes.Op("rows"), fields)

    # What Django's code calls on a query

    def set_limits(self, low: int | None = None, high: int | None = None) -> None:
        """Take a slice; a slice of a slice replaces it by their common one."""
        super().set_limits(low, high)
        if self.is_empty():
            self.record("none")
            return
        self.recorded = tuple(op for op in self.recorded if op.name != "slice")
        self.record("slice", self.low_mark or None, self.high_mark)

    def clear_limits(self) -> None:
        super().clear_limits()
        self.recorded = tuple(op for op in self.recorded if op.name != "slice")

    def exists(self, *_args: Any, **_options: Any) -> RecordedQuery:
        """Return this query: the service makes its own for ``Exists``."""
        return self.clone()

    def clone(self) -> RecordedQuery:
        """Return a copy; what Django copies beside it, of tables and conditions, is empty here."""
        made = type(self).__new__(type(self))
        made.__dict__.update(self.__dict__)
        made.attributes = self.attributes.copy()
        return made

    def has_filters(self) -> bool:
        return any(op.name in ("filter", "exclude", "none") for op in self.recorded)

    def resolve_expression(self, query: Any, *_args: Any, **_kwargs: Any) -> Any:
        raise NotSupportedError(
            f"{self.label} is a model of a service: its rows cannot be part of a query of"
            f" {query.model.__qualname__}, which is of another database. Pass a list of values:"
            ' list(queryset.values_list("pk", flat=True))'
        )

    def get_compiler(self, *_args: Any, **_options: Any) -> Any:
        raise NotSupportedError(
            f"{self.label} is a model of a service, which takes no SQL. This method of Django's"
            " queryset is not available for it: see the reference of pgbackend.rpc"
        )


def _shown(op: nodes.Op) -> str:
    words = [repr(each) for each in op.args]
    words += [f"{name}={each!r}" for name, each in op.kwargs.items()]
    return ", ".join(words)
