"""Correct the positions in errors of a statement that was sent behind a BEGIN or a reset.

The server counts characters, and libpq counts lines, from the beginning of the message. The reader
of an error sees only the statement.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import DiagnosticField

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult


def error_after(prefix: int, result: PGresult, encoding: str) -> psycopg.Error:
    """Return the error in *result*, for a statement sent after a line of *prefix* characters."""
    position = result.error_field(DiagnosticField.STATEMENT_POSITION)
    if prefix and position and int(position) > prefix:
        shifted: Any = _Shifted(result, prefix)
        result = shifted
    return psycopg.errors.error_from_result(result, encoding=encoding)


class _Shifted:
    """A result with an error, as if the line before the statement had not been sent."""

    def __init__(self, result: PGresult, prefix: int) -> None:
        self._result = result
        self._prefix = prefix

    def __getattr__(self, name: str) -> Any:
        return getattr(self._result, name)

    def error_field(self, field: int) -> bytes | None:
        """Return a field of the error; the position counts from the statement's beginning."""
        value = self._result.error_field(field)
        if field == DiagnosticField.STATEMENT_POSITION and value:
            value = b"%d" % (int(value) - self._prefix)
        return value

    def get_error_message(self, encoding: str = "") -> str:
        """Return the server's message, with the line number as in the statement."""
        message: str = self._result.get_error_message(encoding)
        primary = self._result.error_field(DiagnosticField.MESSAGE_PRIMARY) or b""
        text, end, shown = message.partition(f"{primary.decode(encoding or 'utf-8', 'replace')}\n")
        # The message has "LINE 2: SELECT ...", in the server's language, above a line with a caret.
        shown = re.sub(r"^(\D*)(\d+)([^\n]*\n)( ?)", _line_above, shown, count=1)
        return text + end + shown


def _line_above(found: re.Match[str]) -> str:
    before, number, line, space = found.groups()
    above = str(int(number) - 1)
    # The caret marks a column: move it left by one if the new number has one digit less.
    return before + above + line + (space if len(above) == len(number) else "")
