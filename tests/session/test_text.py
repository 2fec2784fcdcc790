"""What a text says about the session: as the server's own session says when it has run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pgbackend.session.clean import changes_session
from pgbackend.session.text import Effect, effect_of, local_settings
from tests.support.server import Server
from tests.support.statements import CHANGES, HARMLESS

# All that a session may have been made to be; sequences and plans aside.
_LOOK = """
    SELECT (SELECT array_agg(name || setting ORDER BY name) FROM pg_settings
            WHERE source = 'session' AND name NOT LIKE 'transaction%'),
        nullif(current_setting('app.one', true), ''), nullif(current_setting('app.two', true), ''),
        current_user, session_user,
        (SELECT array_agg(c) FROM pg_listening_channels() c),
        (SELECT array_agg(name) FROM pg_prepared_statements),
        (SELECT array_agg(name) FROM pg_cursors WHERE is_holdable),
        (SELECT array_agg(l::text) FROM pg_locks l WHERE locktype = 'advisory'
            AND pid = pg_backend_pid()),
        (SELECT array_agg(relname) FROM pg_class WHERE relnamespace = pg_my_temp_schema()),
        (SELECT array_agg(proname) FROM pg_proc WHERE pronamespace = pg_my_temp_schema()),
        (SELECT array_agg(typname) FROM pg_type WHERE typnamespace = pg_my_temp_schema())
"""


# These cannot be tried without a transaction of their own, a library, or a session set before.
CHANGES_UNTRIED = [
    "LOAD 'plpgsql'",
    "RESET ROLE",
    "RESET ALL",
    "DISCARD ALL",
    "SELECT setseed(0.5)",
    "SELECT dblink_connect('one', 'dbname=x')",
    "SELECT pg_replication_origin_session_setup('x')",
    'DO LANGUAGE plpython3u $$ plpy.execute("SET app.one = 1") $$',
    "SELECT set_config('app.one', 'a', $3)",
    "SELECT set_config(setting_name => 'app.one', new_value => 'a', is_local => false)",
]
HARMLESS_UNTRIED = [
    "PREPARE TRANSACTION 'one'",
    "SELECT set_config(is_local => true, setting_name => 'app.one', new_value => 'a')",
    "SELECT setseed FROM t",
    "CALL a_procedure('SET app.one = 1')",
]


@pytest.fixture
def connection(server: Server) -> Iterator[psycopg.Connection[Any]]:
    """A session of its own, none of the backend's."""
    dsn = os.environ["PGBACKEND_TEST_DSN"]
    with psycopg.connect(dsn, autocommit=True, dbname="pgbackend_tests") as conn:
        pid = conn.info.backend_pid
        yield conn
    # Its locks are not to be in the way of the next one.
    server.wait_for_end(pid)
    server.all("DROP VIEW IF EXISTS that_locks")
    server.all("DROP FUNCTION IF EXISTS sets_it, another")


def look(connection: psycopg.Connection[Any]) -> Any:
    """Return what the session is."""
    return connection.execute(_LOOK).fetchone()


def changes(connection: psycopg.Connection[Any], statement: str) -> bool:
    """Return whether a statement leaves the session another than it was."""
    before = look(connection)
    connection.execute(statement.encode())
    return bool(look(connection) != before)


@pytest.mark.parametrize("statement", CHANGES)
def test_what_changes_a_session(connection: psycopg.Connection[Any], statement: str) -> None:
    """What the server's session has after a statement is found in its text, however written."""
    assert changes(connection, statement)
    assert changes_session(statement)


@pytest.mark.parametrize("statement", HARMLESS)
def test_what_does_not(connection: psycopg.Connection[Any], statement: str) -> None:
    """Words in literals, comments, names and definitions do not count, nor what is local."""
    assert not changes(connection, statement)
    assert not changes_session(statement)


def test_what_is_not_tried() -> None:
    """The same for what cannot be tried here."""
    assert [each for each in CHANGES_UNTRIED if not changes_session(each)] == []
    assert [each for each in HARMLESS_UNTRIED if changes_session(each)] == []


def test_what_depends_on_parameters() -> None:
    """Whether set_config() lasts, and what DO does, may be in the parameters."""
    assert effect_of("SELECT set_config(%s, %s, %s)").depends
    assert effect_of("SELECT set_config(%(a)s, %(b)s, %(c)s::bool)").depends
    assert effect_of("DO %s").depends
    assert not effect_of("SELECT set_config(%s, %s, true)").depends
    assert effect_of("SELECT set_config(%s, %s, false)") == Effect(silent=True, sets=True)


def test_setting_to_null() -> None:
    """set_config() of NULL is what RESET is: it may be at the end of a transaction."""
    reset = effect_of("RESET app.one")
    for text in (
        "SELECT set_config('app.one', NULL, false)",
        "SELECT set_config('app.one', null :: text, false); SELECT 1",
        "SELECT set_config('app.one', /* none */ NULL, is_local => false)",
        "SELECT set_config('app.one', NULL, false), set_config('app.two', 'a', true)",
    ):
        assert effect_of(text) == reset, text
    for text in (
        "SELECT set_config('app.one', NULL, false), set_config('app.two', 'a', false)",
        "SELECT set_config('app.one', 'NULL', false)",
        "SELECT set_config('app.one', coalesce(NULL, 'a'), false)",
        "SELECT set_config('app.one', nullif('a', 'b'), false)",
    ):
        assert effect_of(text).silent, text


def test_local_settings() -> None:
    """Statements for a transaction that the server answers by SET are counted."""
    text = "SET LOCAL a.b = ';SET LOCAL'; SET /**/ TRANSACTION READ ONLY; SET c.d = 1"
    assert local_settings(text) == 2
