"""What one message knows while it is run: for whom, within which limits, and what came so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from django.db import models

from ..protocol.errors import BadValue, NotRun, TooManyRows
from ..protocol.limits import Limits
from ..protocol.nodes import Ref, Rows, Tree
from .exposure import Exposure


@dataclass
class Session:
    """One message's run. *results* has what the trees so far gave; None for those that failed."""

    principal: Any
    limits: Limits
    # Opens the scope of a tree on an alias, inside another scope: `operations.open_scope`.
    open_scope: Callable[[Session, Tree, str, Any], Any]
    results: list[Any] = field(default_factory=list)
    # The places of the trees that failed.
    failed: set[int] = field(default_factory=set)
    # Rows that were fetched, for the limit and for the log.
    rows: int = 0
    # Numbers for names of our own in queries.
    numbers: count[int] = field(default_factory=lambda: count(1))
    # The models that the message names, itself or on the way of a path.
    named_models: set[type[models.Model]] = field(default_factory=set)
    # The names of annotations in querysets, by those that the message has.
    own_names: dict[str, str] = field(default_factory=dict)
    # Called before a function of the project is: the message is to be noted by then.
    before_code: Callable[[], None] | None = None
    # Has the open transaction end with its next statement; None: it goes on.
    commit_next: Callable[[], None] | None = None
    _restricted: dict[tuple[type[models.Model], str], bool] = field(default_factory=dict)
    _permitted: set[type[models.Model]] = field(default_factory=set)

    def named(self) -> Any:
        """Return the principal, for a function of the project."""
        if self.before_code is not None:
            self.before_code()
        return self.principal

    def is_restricted(self, exposure: Exposure, alias: str) -> bool:
        """Return whether the model has rows that the principal may not see."""
        key = (exposure.model, alias)
        if key not in self._restricted:
            self._restricted[key] = exposure.is_restricted(self, alias)
        return self._restricted[key]

    def check_entered(self, exposure: Exposure) -> None:
        """Raise PermissionDenied unless the principal may read the model, on a path's way."""
        self.named_models.add(exposure.model)
        if exposure.model not in self._permitted:
            exposure.check_permission(self, "read")
            self._permitted.add(exposure.model)

    def max_rows(self, exposure: Exposure) -> int:
        """Return how many rows a query of the model may give now."""
        left = self.limits.max_rows - self.rows
        return min(left, exposure.max_rows if exposure.max_rows is not None else left)

    def max_affected(self, exposure: Exposure) -> int:
        """Return how many rows a write of the model may change."""
        most = self.limits.max_affected
        return most if exposure.max_affected is None else min(most, exposure.max_affected)

    def count_rows(self, number: int, exposure: Exposure) -> None:
        """Count *number* rows of the answer; raise TooManyRows if that is above the limit."""
        most = self.max_rows(exposure)
        if number > most:
            limit = min(self.limits.max_rows, exposure.max_rows or self.limits.max_rows)
            raise TooManyRows(f"more than {limit} rows", {"max_rows": limit})
        self.rows += number

    def referred(self, ref: Ref) -> Any:
        """Return what *ref* leads to in the results of the trees so far."""
        if ref.index in self.failed:
            raise NotRun(f"tree {ref.index} failed, whose result this one names")
        if ref.index >= len(self.results):
            raise BadValue(f"there is no earlier tree {ref.index}")
        found = self.results[ref.index]
        for number, step in enumerate(ref.path):
            if isinstance(found, Rows):
                found, used = _in_rows(found, step)
                if used:
                    continue
            found = _part(found, step, number)
        if isinstance(found, Rows):
            return _plain(found)
        return found


def _in_rows(rows: Rows, step: Any) -> tuple[Any, bool]:
    """Return what *step* leads to in *rows*, and whether that used it.

    A number is a row; a name is the field of the one row that there is.
    """
    if isinstance(step, int):
        if step >= len(rows.rows):
            raise BadValue(f"the result has no row {step}")
        return _row(rows, rows.rows[step]), True
    if len(rows.rows) != 1:
        raise BadValue(f"the result has {len(rows.rows)} rows, not one with a field {step!r}")
    return _row(rows, rows.rows[0]), False


def _row(rows: Rows, row: list[Any]) -> Any:
    if rows.kind == "flat":
        return row[0]
    if rows.kind in ("tuple", "named"):
        return _Tuple(rows.shape.fields, row)
    return dict(zip(rows.shape.fields, row, strict=False))


class _Tuple(tuple[Any, ...]):
    """A row by position and by name."""

    names: tuple[str, ...] = ()

    def __new__(cls, names: tuple[str, ...], values: list[Any]) -> _Tuple:
        made = super().__new__(cls, values)
        made.names = names
        return made


def _part(found: Any, step: Any, number: int) -> Any:
    try:
        if isinstance(found, _Tuple) and isinstance(step, str):
            return found[found.names.index(step)]
        if isinstance(found, dict | list | tuple) and not (
            isinstance(found, list | tuple) and isinstance(step, str)
        ):
            return found[step]
    except (LookupError, ValueError):
        pass
    raise BadValue(f"step {number} of a reference, {step!r}, leads nowhere")


def _plain(rows: Rows) -> Any:
    """Return rows as a value for a condition: primary keys, or the values of one column."""
    if rows.kind not in ("model", "instance") and len(rows.shape.fields) != 1:
        raise BadValue("a reference to rows of several columns has to name one")
    place = rows.shape.fields.index("pk") if "pk" in rows.shape.fields else 0
    values = [row[place] for row in rows.rows]
    return values[0] if rows.kind == "instance" else values
