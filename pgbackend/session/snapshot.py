"""The state that a session was configured with, and the statements that restore it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator

from .text import Effect

# The effects of DISCARD ALL, which must be alone in a message, without DISCARD PLANS: plans reveal
# nothing, and each function in PL/pgSQL would have to be planned anew.
RESET = (
    "CLOSE ALL",
    "SET SESSION AUTHORIZATION DEFAULT",
    "RESET ALL",
    "DEALLOCATE ALL",
    "UNLISTEN *",
    "SELECT pg_catalog.pg_advisory_unlock_all()",
    "DISCARD TEMP",
    "DISCARD SEQUENCES",
)

# Those of them that may be in a transaction, and matter to the code that comes next in it.
RESET_IN_TRANSACTION = ("SET SESSION AUTHORIZATION DEFAULT", "RESET ALL", "DISCARD TEMP")

# Selects the session's settings that differ from their start. The server does not list the role,
# nor the application's own settings, whose names have a dot. The last rows say whether the session
# has temporary tables, and which process id it has.
SNAPSHOT = (
    "SELECT name, setting FROM pg_catalog.pg_settings WHERE source = 'session'"
    " UNION ALL SELECT name, current_setting(name, true) FROM unnest(%s::text[]) AS own (name)"
    " WHERE current_setting(name, true) IS NOT NULL"
    " UNION ALL SELECT 'session_authorization', session_user"
    " UNION ALL SELECT 'role', current_setting('role')"
    " UNION ALL SELECT 'temporary', (EXISTS (SELECT FROM pg_catalog.pg_class"
    " WHERE relnamespace = pg_catalog.pg_my_temp_schema()))::text"
    " UNION ALL SELECT 'pg_backend_pid()', pg_catalog.pg_backend_pid()::text"
)

_OWN_SETTING = re.compile(
    r"\bset\s+(?:session\s+)?([a-z_]\w*(?:\.\w+)+)|'([a-z_]\w*(?:\.\w+)+)'", re.IGNORECASE
)


def own_settings(setup_statements: Iterable[tuple[str, Effect]]) -> list[str]:
    """Return possible names of the application's own settings in the text of statements."""
    found = [names for sql, _ in setup_statements for names in _OWN_SETTING.findall(sql)]
    return sorted({first or second for first, second in found})


# For any other setting, SET takes the value as one text, as set_config() does, in half the time.
_LISTS_OF_NAMES = frozenset(
    {
        "local_preload_libraries",
        "search_path",
        "session_preload_libraries",
        "shared_preload_libraries",
        "temp_tablespaces",
        "unix_socket_directories",
    }
)

# Matches a setting made by one call and nothing else, as Django sets the time zone.
_SET_CONFIG = re.compile(
    r"\s*select\s+(?:pg_catalog\.)?set_config\(\s*'(\w+)'\s*,\s*'[^'\\]*'\s*,\s*false\s*\)\s*;?\s*",
    re.IGNORECASE,
)

_SETTING = re.compile(
    r"\s*(?:set|select\s+(?:pg_catalog\.)?set_config\s*\()[^;]*;?\s*\Z", re.IGNORECASE
)

_TEMPORARY = re.compile(
    r"""\btemp(?:orary)?\s+(?:recursive\s+)?(?:(?:table|view|sequence)\s+)?
        (?:if\s+not\s+exists\s+)?"?(\w+)
      | \bpg_temp"?\s*\.\s*"?(\w+)""",
    re.IGNORECASE | re.VERBOSE,
)


def to_be_made_again(setup_statements: Iterable[tuple[str, Effect]]) -> Iterator[str]:
    """Yield the statements executed on a new session whose effect a reset undoes.

    These statements make something in the session, or name a temporary table that an earlier one
    made, to fill it with rows.
    """
    temporary: set[str] = set()
    for sql, effect in setup_statements:
        if effect.lasts:
            temporary.update(first or second for first, second in _TEMPORARY.findall(sql))
            yield sql
        elif not temporary.isdisjoint(re.findall(r"\w+", sql)):
            yield sql


def reset_in_transaction(statements: Iterable[str], *, has_temporary: bool) -> list[str]:
    """Return what gives a session its settings back, and removes temporary tables.

    *statements* are those of `statements_after_reset`. Tables that it was configured with stay.
    """
    emptying = RESET_IN_TRANSACTION[:-1] if has_temporary else RESET_IN_TRANSACTION
    return [*emptying, *filter(_SETTING.match, statements)]


def statements_after_reset(
    settings: Iterable[tuple[str, str]],
    setup_statements: Iterable[tuple[str, Effect]],
    *,
    user: str,
    quote: Callable[[str], str],
) -> list[str]:
    """Return the statements that restore the configured session after `RESET`.

    *settings* are the (name, value) rows of `SNAPSHOT`, *setup_statements* those that were executed
    while the session was configured, and *user* is the login user. The session's user and the role
    come last, since the other statements may need more rights.
    """

    def setting(name: str, value: str) -> str:
        if name in _LISTS_OF_NAMES or '"' in name:
            return f"SELECT pg_catalog.set_config({quote(name)}, {quote(value)}, false)"
        quoted = ".".join(f'"{each}"' for each in name.split("."))
        return f"SET {quoted} TO {quote(value)}"

    *others, (_, owner), (_, role) = settings
    names = {name.lower() for name, _ in others}
    parts = [setting(name, value) for name, value in others]
    for sql in to_be_made_again(setup_statements):
        found = _SET_CONFIG.fullmatch(sql)
        if found is None or found[1].lower() not in names:
            parts.append(sql)
    if owner != user:
        parts.append(setting("session_authorization", owner))
    if role != "none":
        parts.append(setting("role", role))
    return parts
