"""Settings that decide which rows are seen, where a request has two connections.

The synchronous parts of a request may run in a thread, on a connection of Django's own, and the
asynchronous ones on one of the loop's. A role, a search path or a setting of the application's own
(``app.tenant``), as row-level security hangs on, is in force on the connection that it was made on.
What the request would execute on the other one without it is refused.

https://www.postgresql.org/docs/current/ddl-rowsecurity.html
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg

from . import joining
from .session_sql import masked
from .wrapping import request_wrapper

if TYPE_CHECKING:
    from .lease import Lease

_OWN = r"[a-z_]\w*(?:\.\w+)+"
_NAMES = rf"role|session[\s']+authorization|search_path|row_security|schema|{_OWN}"

# What no text without it can match.
_MAYBE = re.compile(
    r"\b(?:role|authorization|search_path|row_security|schema|set_config|reset|discard)\b"
    r"|\bset\b[^=;]*?\w\.\w",
    re.IGNORECASE,
)
_SET = re.compile(
    rf"""(?:^|;)[\s']*+ (?P<reset>re)?set[\s']+
        (?:(?P<local>local)[\s']+|session[\s']+(?!authorization))?
        (?P<name>{_NAMES})\b (?:[\s']*(?:=|\bto\b))? (?:[\s']*(?P<none>default|none)\b)?
      | (?:^|;)[\s']*+ (?P<all>reset[\s']+all|discard[\s']+all)\b""",
    re.IGNORECASE | re.VERBOSE,
)
_SET_CONFIG = re.compile(
    rf"""\bset_config"?\s*\(\s*
        E?'(?P<name>role|session_authorization|search_path|row_security|{_OWN})'
        [^,]*, \s*(?P<value>'(?:[^']|'')*'|[^,]*?) [^,)]*, \s*(?P<local>'?t)?""",
    re.IGNORECASE | re.VERBOSE,
)


class Change(NamedTuple):
    """What a statement does to one of those settings, or to all of the application's own."""

    name: str
    # Whether it is another than the session began with.
    made: bool
    # Whether it lasts for the transaction.
    local: bool


def changes(sql: str) -> Iterator[Change]:
    """Yield what the statements of *sql*, with their parameters, do to such settings."""
    if not _MAYBE.search(sql):
        return
    for found in _SET.finditer(masked(sql)):
        if found["all"]:
            yield Change("", made=False, local=False)
        else:
            name = re.sub(r"[\s']+", "_", found["name"].lower())
            made = not found["reset"] and not found["none"]
            yield Change("search_path" if name == "schema" else name, made, bool(found["local"]))
    for found in _SET_CONFIG.finditer(sql):
        made = found["value"] not in ("''", "NULL")
        yield Change(found["name"].lower(), made, bool(found["local"]))


def _changed(names: frozenset[str], change: Change) -> frozenset[str]:
    if not change.name:
        # The role and whose session it is stay.
        return names & {"role", "session_authorization"}
    return names | {change.name} if change.made else names - {change.name}


def note_on_loop(lease: Lease, sql: str) -> None:
    """Note what *sql*, which was executed on *lease*, has set for its session or transaction."""
    for change in changes(sql):
        transaction = lease.state.transaction
        if not change.local:
            lease.settings = _changed(lease.settings, change)
        elif transaction is not None:
            transaction.settings = _changed(transaction.settings, change)


def note_in_thread(wrapper: Any, sql: str) -> None:
    """Note what *sql*, which a thread of a request has executed, has set on its own connection."""
    of_loop = request_wrapper(wrapper.alias)
    if of_loop is not None and not wrapper.bridged:
        for change in changes(sql):
            if not change.local:
                of_loop.set_in_threads = _changed(of_loop.set_in_threads, change)


def check_on_loop(wrapper: Any, lease: Lease, sql: str) -> None:
    """Raise ProgrammingError if *sql* would run without what the request's threads have set."""
    transaction = lease.state.transaction
    here = lease.settings if transaction is None else lease.settings | transaction.settings
    missing = wrapper.set_in_threads - here
    if missing and not any(changes(sql)):
        raise psycopg.ProgrammingError(
            f"this request has set {_listed(missing)} on the connection of a thread; on the event"
            " loop it is not in force. Set it by code that runs there (asynchronous middleware with"
            " `pgbackend.bridged`, or PGBACKEND_SYNC_ON_LOOP = True), or on both"
        )


def check_in_thread(wrapper: Any, sql: str) -> None:
    """Raise ProgrammingError if *sql* would run without what the request has set on the loop."""
    of_loop = request_wrapper(wrapper.alias)
    if of_loop is None or wrapper.bridged:
        return
    session = joining.sessions.get(joining.NO_SESSIONS).get(of_loop.states)
    if session is None or not session.open:
        return
    missing = session.settings - of_loop.set_in_threads
    if missing and not any(changes(sql)):
        raise psycopg.ProgrammingError(
            f"this request has set {_listed(missing)} on its connection on the event loop; on that"
            " of a thread it is not in force. Call the function by `pgbackend.bridged` in place of"
            " sync_to_async(), or set PGBACKEND_SYNC_ON_LOOP = True, or set it in the thread, too"
        )


def _listed(names: frozenset[str]) -> str:
    return " and ".join(sorted(names))
