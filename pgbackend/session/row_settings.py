"""Settings that decide which rows are visible, where a request has several connections.

The synchronous parts of a request may run in a thread, on a connection of Django's own, and the
asynchronous parts on a connection of the event loop. A role, a search path or an application's own
setting (``app.tenant``), which row-level security depends on, is in force only on the connection
that it was set on. If the request would execute a statement on the other connection without the
setting, the statement is refused. The same applies to a task that the request started before: the
task has a connection of its own.

Source: https://www.postgresql.org/docs/current/ddl-rowsecurity.html
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from threading import get_ident
from typing import Any, NamedTuple

import psycopg

from ..tasks import kept_sessions
from ..tasks.lease import Lease
from ..tasks.membership import is_detached
from ..tasks.request import request_wrapper
from .text import effect_of, masked

_OWN = r"[a-z_]\w*(?:\.\w+)+"
_NAMES = rf"role|session[\s']+authorization|search_path|row_security|schema|{_OWN}"

# A text can only change such a setting if it has one of these words, or sets a name with a dot.
_WORDS = re.compile(
    r"\b(?:role|authorization|search_path|row_security|schema|set_config|pg_settings)\b"
    r"|\b(?:reset|discard)\b|^\s*do\b",
    re.IGNORECASE,
)
_STOP = re.compile("[=;]")
_SET_WORD = re.compile(r"\bset\b", re.IGNORECASE)

_QUOTED = re.compile(r'"([a-z_]\w*)"', re.IGNORECASE)

# Patterns for texts in which a quote stands for each literal and comment.
_SETTING = rf"""(?P<reset>re)?set[\s']+
    (?:(?P<local>local)[\s']+|session[\s']+(?!authorization))?
    (?P<name>{_NAMES})\b (?:[\s']*(?:=|\bto\b))?
    (?:[\s']*(?P<none>default|none)(?=[\s']*(?:;|$)))?"""
_SET = re.compile(
    rf"(?:^|;)[\s']*+ (?:{_SETTING} | (?P<all>reset[\s']+all|discard[\s']+all)\b)",
    re.IGNORECASE | re.VERBOSE,
)
_ONLY_SETS = re.compile(
    r"""(?:[\s';]*+ (?:(?:re)?set\b[^;]*+ | discard[\s']+all
        | select[\s']+ (?:(?:pg_catalog\.)?set_config\s*\((?:[^();]|\([^();]*\))*\)[\s',]*+)+ ))+
        [\s';]*""",
    re.IGNORECASE | re.VERBOSE,
)

# Patterns for unmasked texts: the name, the value, and whether it is for the transaction.
_LITERAL = r"'(?:[^']++|'')*+'"
_ARGUMENT = rf"(?:{_LITERAL}|[^'(),;]++|\((?:{_LITERAL}|[^'()]++)*+\))*+"
_SET_CONFIG = re.compile(
    rf"""\bset_config"?\s*+\( (?:\s*+[eE]?'(?P<name>[^']++)'\s*+(?=,)|{_ARGUMENT}) ,
        (?P<value>{_ARGUMENT}) ,
        (?:\s*+(?P<local>'t(?:rue)?'|t(?:rue)?)\s*+|{_ARGUMENT}) \)""",
    re.IGNORECASE | re.VERBOSE,
)

# Statements that may change a setting named in a literal or in a table.
_HIDES = re.compile(r"[\s';]*do\b|.*\bpg_settings\b", re.IGNORECASE | re.DOTALL)

# Statements that read no row.
_OF_SAVEPOINTS = re.compile(r"\s*(?:savepoint|release|rollback)\b[^;]*;?\s*", re.IGNORECASE)

# The name for settings whose names a statement computes.
UNKNOWN = "a setting that is not named in the statement"


class Change(NamedTuple):
    """A change of one of those settings, or of all of the application's own."""

    name: str
    # Whether the value differs from the one that the session began with.
    made: bool
    # Whether the change ends with the transaction.
    local: bool


def may_change(query: Any) -> bool:
    """Return whether *query* may change such a setting; a quick check."""
    if not isinstance(query, str) or _WORDS.search(query):
        return True
    return any("." in part and _SET_WORD.search(part) for part in _STOP.split(query))


def setting_changes(sql: str) -> Iterator[Change]:
    """Yield the changes of such settings by the statements of *sql*, parameters included."""
    if not may_change(sql):
        return
    code = masked(_QUOTED.sub(r"\1", sql))
    for found in _SET.finditer(code):
        if found["all"]:
            yield Change("discard" if found["all"][0] in "dD" else "", made=False, local=False)
        else:
            name = re.sub(r"[\s']+", "_", found["name"].lower())
            made = not found["reset"] and not found["none"]
            yield Change("search_path" if name == "schema" else name, made, bool(found["local"]))
    if re.search(r"\bset_config\b", code, re.IGNORECASE):
        yield from _configured(sql)
    elif _HIDES.match(code) and effect_of(sql).silent:
        yield Change(UNKNOWN, made=True, local=False)


def _configured(sql: str) -> Iterator[Change]:
    for found in _SET_CONFIG.finditer(sql):
        name, local = (found["name"] or UNKNOWN).lower(), bool(found["local"])
        if name == UNKNOWN or re.fullmatch(_NAMES.replace(r"[\s']+", "_"), name):
            made = found["value"].strip() not in ("''", "NULL")
            yield Change(name, made, local)


def changes_settings_only(sql: str) -> bool:
    """Return whether *sql* only changes such settings, or savepoints, and so reads no row."""
    if _OF_SAVEPOINTS.fullmatch(sql):
        return True
    return any(setting_changes(sql)) and bool(_ONLY_SETS.fullmatch(masked(_QUOTED.sub(r"\1", sql))))


def _after_change(names: frozenset[str], change: Change) -> frozenset[str]:
    if change.name == "discard":
        return frozenset()
    if not change.name:
        # RESET ALL leaves the role and the session's user as they are.
        return names & {"role", "session_authorization"}
    if change.name == "session_authorization" and not change.made:
        # RESET SESSION AUTHORIZATION ends the role, too.
        return names - {"role", "session_authorization"}
    return names | {change.name} if change.made else names - {change.name}


def note_on_loop(lease: Lease, sql: str) -> None:
    """Note the settings that *sql* made on *lease*, for its session or transaction."""
    for change in setting_changes(sql):
        transaction = lease.state.transaction
        if not change.local:
            lease.settings = _after_change(lease.settings, change)
        elif transaction is not None:
            transaction.settings = _after_change(transaction.settings, change)


def note_in_thread(wrapper: Any, sql: str) -> None:
    """Note the settings that *sql* made on the connection of a request's thread."""
    of_loop = request_wrapper(wrapper.alias)
    if of_loop is not None and not wrapper.bridged:
        names = _of_thread(of_loop)
        for change in setting_changes(sql):
            if not change.local:
                names = _after_change(names, change)
        restore_of_thread(wrapper, names)


def _of_thread(of_loop: Any) -> frozenset[str]:
    # Each thread has a connection of its own.
    found: frozenset[str] = of_loop.settings_of_threads.get(get_ident(), frozenset())
    return found


def noted_of_thread(wrapper: Any) -> frozenset[str]:
    """Return the settings that the request has made on the calling thread's connection."""
    of_loop = request_wrapper(wrapper.alias)
    return frozenset() if of_loop is None else _of_thread(of_loop)


def restore_of_thread(wrapper: Any, names: frozenset[str]) -> None:
    """Note that exactly *names* are now set on the calling thread's connection."""
    of_loop = request_wrapper(wrapper.alias)
    if of_loop is not None and names != _of_thread(of_loop):
        of_loop.settings_of_threads[get_ident()] = names
        of_loop.set_in_threads = frozenset().union(*of_loop.settings_of_threads.values())


def note_kept(lease: Lease) -> None:
    """Note that the running request keeps the connection of *lease* for its session."""
    of_loop = request_wrapper(lease.pool.alias)
    if of_loop is not None:
        of_loop.kept_lease = lease


def check_on_loop(wrapper: Any, lease: Lease, sql: str) -> None:
    """Raise ProgrammingError if *sql* would run without settings that its request made elsewhere.

    The settings may be on the connection of a thread, or on the one that the request keeps: a task
    that was started before uses another connection.
    """
    elsewhere, where = wrapper.set_in_threads, "of a thread; on the event loop"
    kept: Lease | None = wrapper.kept_lease
    others = kept is not None and kept is not lease and kept.on_loan and kept.session_pins > 0
    if kept is not None and others and not is_detached():
        elsewhere, where = elsewhere | kept.settings, "that it keeps; on that of this task"
    if not elsewhere:
        return
    transaction = lease.state.transaction
    here = lease.settings if transaction is None else lease.settings | transaction.settings
    missing = elsewhere - here
    if missing and not changes_settings_only(sql):
        raise psycopg.ProgrammingError(
            f"this request has set {_listed(missing)} on the connection {where} it is not in"
            " force. Set it by code that runs on the loop (asynchronous middleware with"
            " `pgbackend.bridged`, or PGBACKEND_SYNC_ON_LOOP = True) before the request starts"
            " tasks, or on both"
        )


def check_in_thread(wrapper: Any, sql: str) -> None:
    """Raise ProgrammingError if *sql* would run without settings made on the loop."""
    of_loop = request_wrapper(wrapper.alias)
    if of_loop is None or wrapper.bridged:
        return
    session = kept_sessions.sessions_of_context.get(kept_sessions.NO_SESSIONS).get(of_loop.states)
    if session is None or not session.is_kept:
        return
    missing = session.settings - _of_thread(of_loop)
    if missing and not changes_settings_only(sql):
        raise psycopg.ProgrammingError(
            f"this request has set {_listed(missing)} on its connection on the event loop; on that"
            " of a thread it is not in force. Call the function by `pgbackend.bridged` in place of"
            " sync_to_async(), or set PGBACKEND_SYNC_ON_LOOP = True, or set it in the thread, too"
        )


def _listed(names: frozenset[str]) -> str:
    return " and ".join(sorted(names))
