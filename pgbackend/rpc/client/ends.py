"""What a queryset is asked for: each method returns a `Call`, a future of the result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .calls import Call
from .results import Row, by_key, pair_of, plain, row_of, rows_of


class Ends:
    """Django's methods that end a queryset, with Django's arguments.

    What they return is sent when it is awaited or its `result` is asked for. Errors arrive there
    as `RemoteError`, a class for each code: `DoesNotExist`, `ValidationError`.
    """

    def _end(
        self, convert: Callable[[Any], Any], name: str, /, *args: Any, **kwargs: Any
    ) -> Call[Any]:
        raise NotImplementedError

    def filter(self, /, *args: Any, **lookups: Any) -> Any:
        raise NotImplementedError

    # Reading

    def get(self, /, *args: Any, **lookups: Any) -> Call[Any]:
        """Ask for the one row."""
        queryset = self.filter(*args, **lookups) if args or lookups else self
        found: Call[Any] = queryset._end(row_of, "get")
        return found

    def first(self) -> Call[Any]:
        """Ask for the first row, or None."""
        return self._end(row_of, "first")

    def last(self) -> Call[Any]:
        """Ask for the last row, or None."""
        return self._end(row_of, "last")

    def latest(self, *fields: str) -> Call[Any]:
        """Ask for the latest row by *fields*."""
        return self._end(row_of, "latest", *fields)

    def earliest(self, *fields: str) -> Call[Any]:
        """Ask for the earliest row by *fields*."""
        return self._end(row_of, "earliest", *fields)

    def count(self) -> Call[int]:
        """Ask for the number of rows."""
        return self._end(plain, "count")

    def exists(self) -> Call[bool]:
        """Ask whether there is a row."""
        return self._end(plain, "exists")

    def contains(self, row: Any) -> Call[bool]:
        """Ask whether *row*, or the row with that primary key, is among the rows."""
        return self._end(plain, "contains", row)

    def aggregate(self, /, *aggregates: Any, **named: Any) -> Call[dict[str, Any]]:
        """Ask for aggregates of all rows, as a dictionary by their names."""
        named = {**{each.default_alias: each for each in aggregates}, **named}
        return self._end(plain, "aggregate", **named)

    def in_bulk(
        self, ids: Iterable[Any] | None = None, *, field_name: str = "pk"
    ) -> Call[dict[Any, Any]]:
        """Ask for the rows with *ids*, as a dictionary by these."""
        wanted = None if ids is None else list(ids)
        return self._end(by_key, "in_bulk", wanted, field_name=field_name)

    def explain(self, **options: Any) -> Call[str]:
        """Ask for PostgreSQL's plan."""
        return self._end(plain, "explain", **options)

    def describe(self) -> Call[Any]:
        """Ask what the principal may do with this model, as JSON Schema."""
        return self._end(plain, "describe")

    # Writing

    def create(self, /, **values: Any) -> Call[Any]:
        """Make a row; its `Row` is the result."""
        return self._end(row_of, "create", **values)

    def bulk_create(
        self,
        rows: Iterable[Mapping[str, Any]],
        batch_size: int | None = None,
        ignore_conflicts: bool = False,
        update_conflicts: bool = False,
        update_fields: Iterable[str] | None = None,
        unique_fields: Iterable[str] | None = None,
    ) -> Call[list[Any]]:
        """Make rows of dictionaries, in one message whatever *batch_size*."""
        _check_batch(batch_size)
        options = {
            "ignore_conflicts": ignore_conflicts,
            "update_conflicts": update_conflicts,
            "update_fields": None if update_fields is None else list(update_fields),
            "unique_fields": None if unique_fields is None else list(unique_fields),
        }
        given = {name: each for name, each in options.items() if each}
        return self._end(rows_of, "bulk_create", [dict(row) for row in rows], **given)

    def bulk_update(
        self,
        rows: Iterable[Mapping[str, Any]],
        fields: Iterable[str],
        batch_size: int | None = None,
    ) -> Call[int]:
        """Set *fields* of rows, dictionaries with "pk", in one message whatever *batch_size*."""
        _check_batch(batch_size)
        return self._end(plain, "bulk_update", [dict(row) for row in rows], list(fields))

    def update(self, /, **values: Any) -> Call[int]:
        """Set *values* in all rows; their number is the result."""
        return self._end(plain, "update", **values)

    def delete(self) -> Call[tuple[int, dict[str, int]]]:
        """Delete all rows; the result is their number, and that of each model."""
        return self._end(plain, "delete")

    def get_or_create(
        self, defaults: Mapping[str, Any] | None = None, **lookups: Any
    ) -> Call[tuple[Any, bool]]:
        """Ask for the row with *lookups*, made with *defaults* if there is none."""
        return self._end(pair_of, "get_or_create", defaults=dict(defaults or {}), **lookups)

    def update_or_create(
        self,
        defaults: Mapping[str, Any] | None = None,
        create_defaults: Mapping[str, Any] | None = None,
        **lookups: Any,
    ) -> Call[tuple[Any, bool]]:
        """Set *defaults* in the row with *lookups*, or make it with *create_defaults*."""
        made = None if create_defaults is None else dict(create_defaults)
        options = {"defaults": dict(defaults or {}), "create_defaults": made}
        return self._end(pair_of, "update_or_create", **options, **lookups)

    def insert(self, /, **values: Any) -> Call[Any]:
        """Make a row with the primary key that *values* has."""
        return self._end(row_of, "insert", values)

    def save(
        self,
        pk: Any,
        values: Mapping[str, Any],
        *,
        update_fields: Iterable[str] | None = None,
        force_update: bool = False,
    ) -> Call[Any]:
        """Set *values* in the row with *pk*, or make it."""
        fields = None if update_fields is None else list(update_fields)
        return self._end(
            row_of, "save", pk, dict(values), update_fields=fields, force_update=force_update
        )

    def related_add(self, pk: Any, field: str, *rows: Any, **options: Any) -> Call[None]:
        """Add *rows*, or the rows with these keys, to the relation *field* of the row with *pk*."""
        return self._end(plain, "related_add", pk, field, _keys(rows), **options)

    def related_remove(self, pk: Any, field: str, *rows: Any, **options: Any) -> Call[None]:
        """Remove *rows* from the relation *field* of the row with *pk*."""
        return self._end(plain, "related_remove", pk, field, _keys(rows), **options)

    def related_set(self, pk: Any, field: str, rows: Iterable[Any], **options: Any) -> Call[None]:
        """Make *rows* the relation *field* of the row with *pk*."""
        return self._end(plain, "related_set", pk, field, _keys(rows), **options)

    def related_clear(self, pk: Any, field: str) -> Call[None]:
        """Remove all rows from the relation *field* of the row with *pk*."""
        return self._end(plain, "related_clear", pk, field)

    def call(self, method: str, /, *args: Any, **kwargs: Any) -> Call[Any]:
        """Call the manager's *method*, which the service exposes."""
        return self._end(plain, "call", method, *args, **kwargs)


def _check_batch(size: int | None) -> None:
    if size is not None and size <= 0:
        raise ValueError("a batch has one row or more")


def _keys(rows: Iterable[Any]) -> list[Any]:
    """Return the primary keys of *rows*, some of which may be keys themselves."""
    return [row.pk if isinstance(row, Row) else row for row in rows]
