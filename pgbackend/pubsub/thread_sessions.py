"""What listeners change of a session of Django's own, and what gives it back.

The sessions of a pool are reset before others use them. Django keeps a thread's session as it was
left, for as long as ``CONN_MAX_AGE`` says, and the rows of a batch are handled in one transaction:
a role, a search path or a tenant that one listener sets would be there for the next, and for the
worker's own statements.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from psycopg import sql

_SETTINGS = """
SELECT name, setting FROM pg_catalog.pg_settings
WHERE source = 'session' AND name NOT LIKE 'transaction%'
UNION ALL SELECT '', '' WHERE pg_my_temp_schema() <> 0
UNION ALL SELECT 'session_authorization', session_user
UNION ALL SELECT 'role', current_setting('role')
"""

# By the connection of psycopg, the statements that give its settings back.
_resets: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def remember(wrapper: Any) -> None:
    """Remember the settings that the session of *wrapper* has now, unless they are known."""
    wrapper.ensure_connection()
    if wrapper.connection in _resets:
        return
    with wrapper.cursor() as cursor:
        cursor.execute(_SETTINGS)
        found = dict(cursor.fetchall())
    # RESET ALL knows the settings with a dot in their names, which the server does not list.
    commands = ["SET SESSION AUTHORIZATION DEFAULT", "RESET ALL"]
    if "" not in found:
        commands.append("DISCARD TEMP")
    for name, value in found.items():
        if name:
            command = sql.SQL("SELECT pg_catalog.set_config({}, {}, false)").format(name, value)
            commands.append(command.as_string(wrapper.connection))
    _resets[wrapper.connection] = "; ".join(commands)


def give_back(wrapper: Any) -> None:
    """Give the session of *wrapper* the settings that `remember` has seen."""
    text = _resets.get(wrapper.connection)
    if text is not None:
        with wrapper.cursor() as cursor:
            cursor.execute(text)
