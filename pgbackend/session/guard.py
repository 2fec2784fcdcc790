"""Inspect statements of psycopg's cursors before they are sent, and their answers afterwards.

A statement that makes something in a session needs an owner that keeps the session: `pinned()`, a
request, or another scope. Without one, the statement is refused. Every cursor of a pooled
connection is guarded: those in Django's wrappers, and those made from psycopg's connection
directly.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import psycopg
from greenlet import getcurrent
from psycopg import sql

from ..bridge.ends import scope_end_adder
from ..pool.face import BridgedConnection
from ..pool.session_reset import reset_and_execute, sends_text
from ..tasks.kept_sessions import share_session
from ..tasks.lease import Lease
from .clean import CleanSQL
from .row_settings import may_change, note_kept, note_on_loop
from .text import Effect, effect_of, local_settings

if TYPE_CHECKING:
    from psycopg.abc import PQGen

# The server's command tags of statements whose effect lives in the session, and of SET LOCAL.
_SILENT_TAGS = frozenset({b"SET", b"LISTEN"})
_TAGS = _SILENT_TAGS | {b"RESET", b"PREPARE", b"LOAD", b"DISCARD ALL"}

_LISTEN = re.compile(r'\s*listen\s+(?:"[^"]*"|\w+)\s*;?\s*', re.IGNORECASE)

_NOTHING = Effect()

# The task whose changes to a session are for one use only; see `for_one_use`.
_maker: ContextVar[asyncio.Task[Any] | None] = ContextVar("pgbackend_maker", default=None)


@contextmanager
def for_one_use() -> Iterator[None]:
    """Neither keep nor refuse what the running task makes in a session in the block.

    Such a change is made anew each time: django-tenants sets the search path for each cursor that
    it makes.
    """
    token = _maker.set(asyncio.current_task())
    try:
        yield
    finally:
        _maker.reset(token)


class Guarded:
    """A class put in front of psycopg's cursor class; see `guard`."""

    __slots__ = ()

    # Whether the cursor is in one of Django's wrappers.
    wrapped = False

    _conn: BridgedConnection
    _results: list[Any]
    _query: Any
    _check_results: Callable[[list[Any]], None]
    _set_results: Callable[[list[Any]], None]

    def execute(self, query: Any, params: Any = None, **kwargs: Any) -> Any:
        """Execute a statement, as psycopg's ``Cursor.execute``."""
        if kwargs.get("prepare"):
            # Mark the session for a reset: the next borrower would find the statement prepared.
            self._conn.uninspected = True
        execute = super().execute  # type: ignore[misc]  # psycopg's
        return _execute(self, query, lambda: [params], execute, query, params, **kwargs)

    def executemany(self, query: Any, params_seq: Iterable[Any], **kwargs: Any) -> None:
        """Execute a statement for each of many parameters, as psycopg's ``Cursor.executemany``."""
        if not isinstance(params_seq, list | tuple):
            params_seq = list(params_seq)
        self._conn.reset_now()
        execute = super().executemany  # type: ignore[misc]  # psycopg's
        _execute(self, query, lambda: params_seq, execute, query, params_seq, **kwargs)

    def stream(self, query: Any, params: Any = None, **kwargs: Any) -> Any:
        """Iterate over rows as they come, as psycopg's ``Cursor.stream``."""
        self._conn.counts.cursor += 1
        _inspect(self, query, lambda: [params])
        _note_settings(self, query, params)
        return super().stream(query, params, **kwargs)  # type: ignore[misc]  # psycopg's

    def copy(self, statement: Any, params: Any = None, **kwargs: Any) -> Any:
        """Start a COPY, as psycopg's ``Cursor.copy``."""
        self._conn.counts.cursor += 1
        _inspect(self, statement, lambda: [params])
        return super().copy(statement, params, **kwargs)  # type: ignore[misc]  # psycopg's

    def _maybe_prepare_gen(self, pgq: Any, **kwargs: Any) -> PQGen[None]:
        face = self._conn
        if not face.reset_due:
            yield from super()._maybe_prepare_gen(pgq, **kwargs)  # type: ignore[misc]  # psycopg's
            return
        # psycopg's own steps for a statement sent as text, with the reset in the same message.
        self._query = pgq
        results = yield from reset_and_execute(face, pgq.query)
        self._check_results(results)
        self._set_results(results)


class _Wrapped(Guarded):
    __slots__ = ()

    wrapped = True


# The guarded classes, by the class put in front and psycopg's class or that of `cursor_factory`.
_classes: dict[tuple[type, type], type] = {}


def guard(cursor: Any, *, wrapped: bool = False) -> Any:
    """Have the statements of a psycopg cursor inspected; return the cursor.

    *wrapped* says that the cursor is for one of Django's wrappers.
    """
    cls = type(cursor)
    if issubclass(cls, Guarded):
        # The cursor is guarded already, since Django got it from the connection.
        cls = cls.__mro__[cls.__mro__.index(Guarded) + 1]
    key = (_Wrapped if wrapped else Guarded, cls)
    guarded = _classes.get(key)
    if guarded is None:
        named = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
        guarded = _classes[key] = type(cls.__name__, key, {"__slots__": (), **named})
    cursor.__class__ = guarded
    return cursor


def _execute(
    cursor: Any, query: Any, parameters: Any, execute: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """Inspect a statement, call ``execute(...)``, and inspect the server's answers."""
    face: BridgedConnection = cursor._conn
    if face.setup_statements is not None:
        made = _effect(face, query, parameters)
        result = execute(*args, **kwargs)
        # Do not record a statement that failed: it would fail again.
        face.setup_statements.append(made)
        return result
    clean = type(query) is CleanSQL
    effect = _NOTHING if clean else _inspect(cursor, query, parameters)
    if face.lease is None:
        return execute(*args, **kwargs)
    face.counts.cursor += 1
    here = id(getcurrent())
    face.inspected_in.add(here)
    text = not (kwargs.get("binary") or cursor.format)
    if face.reset_due and text and (clean or effect.can_follow) and sends_text(cursor):
        face.resetting.add(here)
    try:
        result = execute(*args, **kwargs)
    finally:
        face.inspected_in.discard(here)
        face.resetting.discard(here)
    if not clean and face.lease is not None:
        if not effect.lasts:
            _inspect_answers(face, query, cursor)
        if may_change(query):
            note_on_loop(face.lease, _effect(face, query, parameters)[0])
    return result


def _note_settings(cursor: Any, query: Any, params: Any) -> None:
    face: BridgedConnection = cursor._conn
    if face.lease is not None and may_change(query):
        note_on_loop(face.lease, _effect(face, query, lambda: [params])[0])


def _inspect(cursor: Any, query: Any, parameters: Any) -> Effect:
    """Inspect a statement: note the reset it needs; keep the session for its effects, or refuse.

    Raise psycopg.ProgrammingError if nothing keeps the session; nothing is sent then.
    """
    face: BridgedConnection = cursor._conn
    text, effect = _effect(face, query, parameters)
    lease = face.lease
    if lease is not None:
        lease.closings += 1
        lease.sets = lease.sets or effect.sets or not effect.plain
    if lease is not None and not effect.plain:
        lease.suspect = True
        lease.dirty = lease.dirty or effect.lasts
        # Code that listens on psycopg's own connection is notified as long as the connection is on
        # loan.
        if effect.lasts and (
            cursor.wrapped or lease.state.transaction is not None or not _LISTEN.fullmatch(text)
        ):
            _keep_session(lease, silent=effect.silent)
    return effect


def _effect(face: BridgedConnection, query: Any, parameters: Any) -> tuple[str, Effect]:
    """Return a statement's text and its effect on the session, with parameters if they matter."""
    backslashes = face.pgconn.parameter_status(b"standard_conforming_strings") == b"off"
    text = _text(face, query)
    unmerged = Effect(silent=True) if text is None else effect_of(text, backslashes=backslashes)
    if text is not None and not unmerged.depends and face.setup_statements is None:
        return text, unmerged
    texts, effects = [], []
    for params in parameters():
        try:
            merged = psycopg.ClientCursor(face).mogrify(query, params)
        except (psycopg.Error, TypeError, ValueError):
            # The parameters do not fit, or fit only where the server merges them.
            effects.append(unmerged)
        else:
            texts.append(merged)
            effects.append(effect_of(merged, backslashes=backslashes))
    return "\n;".join(texts), Effect(
        silent=any(each.silent or each.depends for each in effects),
        loud=any(each.loud for each in effects),
        plain=all(each.plain for each in effects),
        can_follow=all(each.can_follow for each in effects),
        sets=any(each.sets for each in effects),
    )


def _text(face: BridgedConnection, query: Any) -> str | None:
    """Return the text of a query, or None if only psycopg knows it, with the parameters."""
    if isinstance(query, str):
        return query
    if isinstance(query, bytes):
        return query.decode(face.info.encoding, "replace")
    if isinstance(query, sql.Composable):
        return query.as_string(face)
    return None


def _inspect_answers(face: BridgedConnection, query: Any, cursor: Any) -> None:
    """Keep the session, or raise, if the server's answers show a lasting effect after all."""
    tags = [result.command_status for result in cursor._results]
    if _TAGS.isdisjoint(tags):
        return
    found = [tag for tag in tags if tag in _TAGS]
    if set(found) == {b"SET"} and len(found) <= local_settings(_text(face, query) or ""):
        return
    assert face.lease is not None
    face.lease.dirty = True
    _keep_session(face.lease, silent=not _SILENT_TAGS.isdisjoint(found), late=True)


def _keep_session(lease: Lease, *, silent: bool, late: bool = False) -> None:
    """Keep the connection for its session as long as Django would; raise if that is unknown.

    *silent* says that losing the effect would cause no error. An effect that is not silent may end
    with a transaction.
    """
    if lease.session_pins or (
        (maker := _maker.get()) is not None and maker is asyncio.current_task()
    ):
        return
    state = lease.state
    transaction = state.transaction
    ends_with_block = state.in_atomic_block and state.commit_on_exit
    if transaction is not None and not ends_with_block:
        # With autocommit off the connection is kept from one transaction to the next.
        return
    register = scope_end_adder() or (transaction.add_scope_end if transaction is not None else None)
    if register is not None:
        lease.pin_for_session()
        register(lease.unpin_for_session)
        share_session(lease, transaction)
        note_kept(lease)
    elif silent or transaction is None:
        raise psycopg.ProgrammingError(_refusal(lease, in_block=transaction is not None, late=late))


def _refusal(lease: Lease, *, in_block: bool, late: bool) -> str:
    when = "at the end of the transaction" if in_block else "right after the statement"
    ran = " It has run, since its text did not tell." if late else ""
    return (
        "the effect of this statement lives in the session, which is reset when the connection"
        f" goes back to the pool, {when}.{ran} Use it inside"
        f" `with pgbackend.transaction.pinned({lease.pool.alias!r}):`; or, inside atomic(), what"
        " ends with the transaction: SET LOCAL, set_config(..., true), pg_advisory_xact_lock(),"
        " temporary tables"
    )
