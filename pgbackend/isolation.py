"""``atomic`` with the characteristics of PostgreSQL's transactions, and typed for both worlds."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, overload

import psycopg
from django.db import DEFAULT_DB_ALIAS, transaction

from .wrapper.characteristics import ASKED, Characteristics

F = TypeVar("F", bound=Callable[..., Any])

Isolation: TypeAlias = (
    Literal["read uncommitted", "read committed", "repeatable read", "serializable"]
    | psycopg.IsolationLevel
)


class Atomic(transaction.Atomic):
    """Django's ``Atomic`` for a transaction that may ask for more. Made by `atomic`."""

    def __init__(
        self,
        using: str | None,
        savepoint: bool,
        durable: bool,
        asked: Characteristics | None = None,
    ) -> None:
        super().__init__(using, savepoint, durable)
        if asked is not None:
            if "pgbackend.base" in sys.modules and not hasattr(transaction.Atomic, "__aenter__"):
                # Django's block would begin a plain transaction, and say nothing.
                raise RuntimeError(
                    f"{asked.name} is not available: this release of Django has another Atomic"
                    " than those that pgbackend knows. See the warning when the backend was loaded"
                )
            setattr(self, ASKED, asked)

    # The methods themselves are Django's, and those of `patches.atomic`.
    if TYPE_CHECKING:

        def __enter__(self) -> None: ...

        def __exit__(
            self,
            exc_type: type[BaseException] | None,
            exc_value: BaseException | None,
            traceback: TracebackType | None,
        ) -> None: ...

        async def __aenter__(self) -> None: ...

        async def __aexit__(
            self,
            exc_type: type[BaseException] | None,
            exc_value: BaseException | None,
            traceback: TracebackType | None,
        ) -> None: ...

        def __call__(self, func: F) -> F: ...


@overload
def atomic(using: F, /) -> F: ...


@overload
def atomic(
    using: str | None = None,
    savepoint: bool = True,
    durable: bool = False,
    *,
    isolation: Isolation | None = None,
    read_only: bool | None = None,
    deferrable: bool | None = None,
) -> Atomic: ...


def atomic(
    using: Any = None,
    savepoint: bool = True,
    durable: bool = False,
    *,
    isolation: Isolation | None = None,
    read_only: bool | None = None,
    deferrable: bool | None = None,
) -> Any:
    """Return Django's ``atomic``, for a transaction with characteristics of its own.

    Without the last three arguments this is ``django.db.transaction.atomic``, with types for
    ``async with`` and for decorated coroutine functions. With them the block begins a transaction
    so, and leaves nothing on the connection:

    *isolation* is the level, as a word of PostgreSQL's or psycopg's ``IsolationLevel``. With
    *read_only* the server refuses to write. With *deferrable*, in a serializable transaction that
    is read only, the first statement waits for a snapshot that no other transaction can disturb.
    None stands for what ``OPTIONS`` and the server say.

    The block then has to be the outermost: entering it in a transaction raises RuntimeError, except
    in that of a TestCase, whose level it has.

    https://www.postgresql.org/docs/current/sql-set-transaction.html
    """
    if callable(using):
        return Atomic(DEFAULT_DB_ALIAS, savepoint, durable)(using)
    asked = characteristics("atomic()", isolation, read_only, deferrable)
    return Atomic(using, savepoint, durable, asked if any_asked(asked) else None)


def any_asked(asked: Characteristics) -> bool:
    """Return whether *asked* asks for anything."""
    return any(each is not None for each in asked[:-1])


def characteristics(
    name: str, isolation: Isolation | None, read_only: bool | None, deferrable: bool | None
) -> Characteristics:
    """Return what a block called *name* asks for; raise ValueError for no level of PostgreSQL's."""
    level = isolation
    if isinstance(level, str):
        by_name = {each.name.replace("_", " ").lower(): each for each in psycopg.IsolationLevel}
        level = by_name.get(level.lower())
    if isolation is not None and not isinstance(level, psycopg.IsolationLevel):
        raise ValueError(
            f"isolation is 'read committed', 'repeatable read' or 'serializable', or one of"
            f" psycopg.IsolationLevel, not {isolation!r}"
        )
    said = [
        f"{argument}={value!r}"
        for argument, value in (
            ("isolation", isolation),
            ("read_only", read_only),
            ("deferrable", deferrable),
        )
        if value is not None
    ]
    return Characteristics(level, read_only, deferrable, name.replace("()", f"({', '.join(said)})"))
