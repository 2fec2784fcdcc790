"""What a text says about the session: as the server's own session says when it has run."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from pgbackend.session.clean import changes_session
from pgbackend.session.text import Effect, effect_of, local_settings
from tests.support.server import Server

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

# Each is executed on a session of its own.
CHANGES = [
    "SET app.one = 'a'",
    "set app.one to 'a'",
    "SET\tapp.one\n=\r\n'a'",
    "  \n SET SESSION app.one TO 'a';",
    "SET app.one TO DEFAULT; SET app.one TO 'b'",
    "/* tenant */ SET app.one = 'a'",
    "/* a /* nested */ comment */ SET app.one = 'a'",
    "/* a /* b /* c /* d /* e */ */ */ */ */SET app.one = 'a'",
    "/* it's */ SET app.one = 'a' -- it's",
    "-- first\n--second\nSET app.one = 'a'",
    "-- first\r SET app.one = 'a'",
    "/**//***//* ** / */SET/**/app.one='a'",
    ";;; SET app.one = 'a'",
    "SELECT 1; SET app.one = 'a'; SELECT 2",
    "SELECT 'a''b;'; SET app.one = 'a'",
    "SELECT 'a\\'; SET app.one = 'a'",
    "SELECT E'a\\'; SELECT ' ; SET app.one = 'a'",
    "SELECT e'\\\\'; SET app.one = 'a'",
    "SELECT E'a''\\''; SET app.one = 'a'",
    "SELECT $$it's$$; SET app.one = 'a'",
    "SELECT $a$ $$ $b$ $a$; SET app.one = 'a'",
    "SELECT 1 AS a$b; SET app.one = '$b'",
    'SELECT 1 AS "a;b""c\'"; SET app.one = \'a\'',
    "SELECT U&'d\\0061t\\+000061'; SET app.one = 'a'",
    "SELECT B'101', X'1F', N'a'; SET app.one = 'a'",
    "SET LOCAL app.two = 'a'; SET app.one = 'a'",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
    "SET TIME ZONE 'Asia/Tokyo'",
    "SET NAMES 'LATIN1'",
    "SET SCHEMA 'pg_catalog'",
    "SET search_path = pg_catalog",
    "SET ROLE pg_monitor",
    "SET SESSION ROLE pg_monitor",
    "SET SESSION AUTHORIZATION pg_monitor",
    "SET XML OPTION DOCUMENT",
    "SELECT set_config('app.one', 'a', false)",
    "SELECT set_config('app.one', 'a', 'f')",
    "SELECT set_config('app.one', 'a', 'off')",
    "SELECT set_config('app.one', 'a', NOT true)",
    "SELECT set_config('app.one', 'a', true AND false)",
    "SELECT set_config('app.one', 'true', /* true */ false)",
    "SELECT SET_CONFIG ( 'app.one' , 'a' , FALSE )",
    "SELECT pg_catalog.set_config('app.one', 'a', 1 = 0)",
    "SELECT \"pg_catalog\".\"set_config\"('app.one', 'a', false)",
    "SELECT U&\"set\\005fconfig\"('app.one', 'a', false)",
    "SELECT set_config('app.two', 'a', true), set_config('app.one', 'a', false)",
    "SELECT set_config('app.two', set_config('app.one', 'a', false), true)",
    "SELECT set_config('app.one', concat('(', 'b', ')'), false)",
    "SELECT set_config('app.one', 'a', (SELECT false))",
    "WITH a AS (SELECT set_config('app.one', 'a', false)) SELECT * FROM a",
    "SELECT set_config/* (..., true) */('app.one', 'a', false)",
    "EXPLAIN ANALYZE SELECT set_config('app.one', 'a', false)",
    "COPY (SELECT set_config('app.one', 'a', false)) TO '/dev/null'",
    "UPDATE pg_settings SET setting = '33MB' WHERE name = 'work_mem'",
    "UPDATE pg_catalog.pg_settings SET setting = '33MB' WHERE name = 'work_mem'",
    "VALUES (set_config('app.one', 'a', false))",
    "LISTEN orders",
    "/**/LISTEN/**/orders",
    'LISTEN "Orders"',
    "PREPARE p AS SELECT 1",
    "PREPARE p (int) AS SELECT $1",
    "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
    "DECLARE c NO SCROLL CURSOR /* and */ WITH HOLD FOR SELECT 1",
    "DECLARE c BINARY INSENSITIVE SCROLL CURSOR WITH HOLD FOR SELECT 1",
    "CREATE TEMP TABLE t (n int)",
    "create temporary table if not exists t (n int)",
    "CREATE GLOBAL TEMPORARY TABLE t (n int)",
    "CREATE LOCAL TEMP TABLE t (n int) ON COMMIT DELETE ROWS",
    "CREATE TEMP TABLE t AS SELECT 1",
    "CREATE TEMP VIEW v AS SELECT 1",
    "CREATE OR REPLACE TEMP VIEW v AS SELECT 1",
    "CREATE TEMP RECURSIVE VIEW v (n) AS SELECT 1",
    "CREATE TEMP SEQUENCE s",
    "CREATE TABLE pg_temp.t (n int)",
    'CREATE TABLE "pg_temp".t AS SELECT 1',
    "CREATE VIEW pg_temp . v AS SELECT 1",
    "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE TYPE pg_temp.kind AS ENUM ('a')",
    "SELECT 1 AS n INTO TEMP t",
    "SELECT 1 AS n INTO TEMPORARY TABLE t FROM pg_class LIMIT 1",
    "SELECT 1 AS n INTO pg_temp.t",
    "WITH a AS (SELECT 1 AS n) SELECT * INTO LOCAL TEMP t FROM a",
    "EXPLAIN (ANALYZE, COSTS off) CREATE TEMP TABLE t AS SELECT 1",
    "SELECT pg_advisory_lock(1)",
    "SELECT pg_advisory_lock_shared(1, 2)",
    "SELECT pg_try_advisory_lock(1)",
    "SELECT pg_try_advisory_lock_shared (1)",
    "SELECT * FROM pg_advisory_lock(1)",
    'SELECT pg_catalog."pg_advisory_lock"(1)',
    "WITH a AS MATERIALIZED (SELECT pg_advisory_lock(1)) SELECT 1 FROM a",
    "SELECT 1 WHERE pg_try_advisory_lock(1)",
    "DO $$ BEGIN SET app.one = 'a'; END $$",
    "DO $x$BEGIN PERFORM set_config('app.one', $$a$$, false); END$x$",
    "DO LANGUAGE plpgsql 'BEGIN PERFORM set_config(''app.one'', ''a'', false); END'",
    "DO $$ BEGIN IF true THEN SET app.one = 'a'; END IF; END $$",
    "DO $$ DECLARE x text; BEGIN x := set_config('app.one', 'a', false); END $$",
    "DO $$ BEGIN EXECUTE 'SET app.one = 1'; END $$",
    "DO $$ BEGIN EXECUTE format('SET %I = 1', 'app.one'); EXCEPTION WHEN OTHERS THEN"
    " EXECUTE 'SET app.one = 1'; END $$",
    "DO $$ DECLARE s text := 'SET app.one = 1'; BEGIN EXECUTE s; END $$",
    "DO $$ BEGIN FOR i IN 1..2 LOOP SET app.one = 'a'; END LOOP; END $$",
    "DO $$ BEGIN CREATE TEMP TABLE t (n int); END $$",
    "DO $$ BEGIN PERFORM pg_advisory_lock(1); END $$",
    "DO E'BEGIN SET app.one = 1; END'",
    "SELECT 1; DO $$ BEGIN /* it's */ SET app.one = 'a'; END $$",
    "EXPLAIN SELECT 1; SET app.one = 'a'",
    "SELECT $A$ $a$ $A$; SET app.one = 'a' /* $a$ */",
    r"DO E'BEGIN SET app.one=\'a\';\nEND'",
    r"DO E'BEGIN\n  SET app.one = 1;\nEND'",
    r"DO e'BEGIN\n\tPERFORM set_config(\'app.one\', \'a\', false); END'",
    r"DO E'BEGIN\tSET app.one = 1; END'",
    r"DO E'BEGIN -- a note\nSET app.one = 1; END'",
    r"DO E'BEGIN -- a note\rSET app.one = 1; END'",
    r"DO E'BEGIN\fSET app.one = 1; END'",
    r"DO E'BEGIN S\x45T app.one = 1; END'",
    r"DO E'\BEGIN \SET app.o\Ne = 1; E\ND'",
    r"DO E'BEGIN \123ET app.one = 1; END'",
    r"DO E'BEGIN PERFORM set\u005fconfig(\'app.one\', \'a\', false); END'",
    r"DO E'BEGIN PERFORM set\U0000005fconfig(''app.one'', ''a'', false); END'",
    r"DO LANGUAGE plpgsql E'BEGIN S\x45T app.one = 1; END'",
    r"DO E'BEGIN S\x45T app.one = 1; END' LANGUAGE plpgsql",
    "DO E'BEGIN \\x53'\n  'ET app.one = 1; END'",
    "DO 'BEGIN S'\n-- and so on\n'ET app.one = 1; END'",
    "DO 'BEGIN S' -- and so on\r'ET app.one = 1; END'",
    "SELECT E'a'\n'\\' , '; SET app.one = 'a'",
    "SELECT E'a' -- it's\n'\\' , '; SET app.one = 'a'",
    r"DO U&'BEGIN S\0045T app.one = 1; END'",
    r"DO u&'BEGIN S\+000045T app.one = ''\\''; END'",
    "DO U&'BEGIN S!0045T app.one = 1; END' UESCAPE '!'",
    "DO U&'BEGIN S!0045T app.one = 1; END' /* it's */ uescape -- it's\n '!' LANGUAGE plpgsql",
    "DO U&'BEGIN S*+000045T app.one = ''**''; END' UESCAPE '*'",
    "DO U&'BEGIN EXECUTE ''S!0045T app.one = 1''; END' UESCAPE '!'",
    "DO U&'BEGIN !0053'\n'ET app.one = 1; END' UESCAPE '!'",
    r"DO $$BEGIN EXECUTE E'S\x45T app.one = 1'; END$$",
    r"DO $$BEGIN EXECUTE E'\nSELECT 1;\nS\x45T app.one = 1'; END$$",
    r"DO $$BEGIN EXECUTE U&'\0053ET app.one = 1'; END$$",
    r"DO $$BEGIN EXECUTE U&'!0053ET app.one = 1' UESCAPE '!'; END$$",
    r"DO 'BEGIN EXECUTE E''S\x45T app.one = 1''; END'",
    "DO 'BEGIN EXECUTE ''SELECT 1; S''\n''ET app.one = 1''; END'",
    "DO $a$BEGIN EXECUTE 'DO $b$BEGIN EXECUTE ''SET app.one = 1''; END$b$'; END$a$",
    "DO $$BEGIN EXECUTE 'SELECT \"set_config\"(''app.one'', ''a'', false)'; END$$",
    r"DO E'BEGIN PERFORM \"set\x5fconfig\"(\'app.one\', \'a\', false); END'",
    "SELECT U&\"set!005fconfig\" UESCAPE '!' ('app.one', 'a', false)",
    "SELECT U&\"pg!005fadvisory!005flock\" /* it's */ uescape '!' (1)",
    "DO $$BEGIN PERFORM U&\"set!005fconfig\" UESCAPE '!' ('app.one', 'a', false); END$$",
    "SET LOCAL search_path = pg_temp; CREATE TABLE t (n int)",
    "SET LOCAL search_path TO 'pg_temp'; CREATE TABLE t (n int)",
    'SET LOCAL search_path /* it */ = "pg_temp", public; SELECT 1 AS n INTO t',
    "SELECT set_config('search_path', 'pg_temp', true); CREATE TABLE t (n int)",
]

HARMLESS = [
    "SELECT 1",
    "",
    ";",
    "-- SET app.one = 'a'",
    "/* ; SET app.one = 'a' */ SELECT 1",
    "SELECT 'x; SET app.one = 1'",
    "SELECT ';SET app.one = 1' AS \";SET app.one = 1;\"",
    "SELECT E'\\'; SET app.one = 1; --'",
    "SELECT $$; SET app.one = 1; $$",
    "SELECT $q$; SET app.one = 1; $$ ' $q$ AS n",
    "SELECT 1 /* /* */ ; SET app.one = 1; */",
    "SELECT 'pg_advisory_lock(1)', $$set_config('app.one', 'a', false)$$",
    'SELECT 1 AS "pg_advisory_lock(1)"',
    "SELECT 1 AS set_config, 2 AS pg_advisory_lock",
    "SELECT set_config('app.one', NULL, true), coalesce(NULL, false)",
    "SELECT set_config('app.one', NULL, TRUE)",
    "SELECT set_config('app.one', NULL, 't')",
    "SELECT set_config('app.one', NULL, 'true'::boolean)",
    "SELECT set_config('app.one', NULL, true :: bool)",
    "SELECT set_config('app.one', NULL, bool 'on')",
    "SELECT set_config('app.one', concat(upper(NULL), lower(NULL)), 1::bool)",
    "SELECT set_config('app.one', NULL, true); SELECT false",
    "SELECT set_config('app.one', NULL, /* (, false) */ true)",
    "SET LOCAL work_mem = '3MB'",
    "set /* session */ local work_mem to '3MB'",
    "SET TRANSACTION READ ONLY",
    "SET CONSTRAINTS ALL DEFERRED",
    "BEGIN; SET LOCAL work_mem = '3MB'; COMMIT",
    "UPDATE pg_class SET relname = 'listen' WHERE false",
    "CREATE TABLE IF NOT EXISTS temporary_things (temp int, set int)",
    "DROP TABLE IF EXISTS temporary_things, temp, template_of, temperature",
    "CREATE TABLE temp (n int); INSERT INTO temp VALUES (1); DROP TABLE temp",
    "CREATE TABLE temp (n int); INSERT  /* a */ INTO temp (n) SELECT 1; DROP TABLE temp",
    "CREATE TABLE temp (n int); WITH a AS (SELECT 1 AS n) INSERT INTO temp SELECT n FROM a;"
    " DROP TABLE temp",
    "CREATE TABLE temp (n int); MERGE INTO temp USING (SELECT 1 AS n) s ON false"
    " WHEN NOT MATCHED THEN INSERT VALUES (1); DROP TABLE temp",
    "CREATE TEMP TABLE t (n int) ON COMMIT DROP",
    "BEGIN; CREATE TEMP TABLE t ON COMMIT DROP AS SELECT 1; COMMIT",
    "SELECT pg_advisory_xact_lock(1)",
    "SELECT pg_try_advisory_xact_lock_shared(1)",
    "SELECT pg_advisory_unlock_all()",
    "UNLISTEN *",
    "NOTIFY orders, 'LISTEN'",
    "DEALLOCATE ALL",
    "BEGIN; DECLARE c CURSOR FOR SELECT 1; CLOSE c; COMMIT",
    "BEGIN; DECLARE c CURSOR WITHOUT HOLD FOR WITH hold AS (SELECT 1) SELECT * FROM hold; COMMIT",
    "DISCARD PLANS",
    "CREATE OR REPLACE FUNCTION sets_it() RETURNS text LANGUAGE sql AS $$"
    " SELECT set_config('app.one', 'a', false) $$",
    "CREATE OR REPLACE FUNCTION sets_it() RETURNS text LANGUAGE sql SET work_mem = '3MB' AS '"
    " SELECT pg_advisory_lock(1)::text'",
    "CREATE OR REPLACE FUNCTION sets_it() RETURNS text BEGIN ATOMIC SELECT CASE WHEN true THEN 1"
    " END; SELECT set_config('app.one', 'a', false); END; SELECT 1",
    "CREATE OR REPLACE VIEW that_locks AS SELECT pg_try_advisory_lock(1)",
    "CREATE OR REPLACE FUNCTION another() RETURNS int LANGUAGE sql AS 'SELECT 1';"
    " ALTER FUNCTION another SET work_mem = '3MB'; ALTER FUNCTION another RESET work_mem",
    "DO $$ BEGIN UPDATE pg_class SET relname = 'SET' WHERE false; END $$",
    "DO $$ DECLARE x int; BEGIN x := 1; /* SET app.one = 1; */ END $$",
    "DO $$ BEGIN EXECUTE 'UPDATE pg_class SET relname = 1 WHERE false'; EXCEPTION WHEN OTHERS"
    " THEN NULL; END $$",
    "DO $$ BEGIN RAISE NOTICE 'SET app.one = 1'; END $$",
    "SELECT count(*) FILTER (WHERE relname <> 'load') FROM pg_class WHERE relname = 'listen'",
    "VALUES ('prepare'), ('; LISTEN x')",
    r"DO E'BEGIN -- a note \\nSET app.one = 1;\nEND'",
    r"DO E'BEGIN RAISE NOTICE \'SET app.one = 1\';\nEND'",
    r"DO U&'BEGIN PERFORM 1; \002D\002D SET app.one = 1;\000AEND'",
    r"SELECT E'\x27; SET app.one = 1; --', U&'\0027; SET app.one = 1; --'",
    "SELECT E'a'\n'\\'; SET app.one = 1; --'",
    'SELECT U&"a" FROM (SELECT 1 AS a) b',
    "SET LOCAL search_path = public, pg_temp; CREATE TABLE IF NOT EXISTS tests_author (n int)",
    "SELECT 1 AS do, 2 AS load",
]

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
        yield conn
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


@pytest.mark.parametrize("statement", [*CHANGES, *HARMLESS])
def test_case_and_comments(statement: str) -> None:
    """Neither the case of words nor comments around them make a difference."""
    expected = changes_session(statement)
    assert changes_session(f"/* a */ -- it's\n{statement}") is expected
    assert changes_session(f"SELECT 'a'; {statement}") is expected


def test_backslashes() -> None:
    """With standard_conforming_strings off, backslashes are escapes in each literal."""
    text = r"SELECT 'a\'; SET x.y = 1; --'"
    assert effect_of(text).silent
    assert not effect_of(text, backslashes=True).silent
    text = r"SELECT '\'; SELECT '; SET x.y = '1'"
    assert not effect_of(text).silent
    assert effect_of(text, backslashes=True).silent


def test_what_depends_on_parameters() -> None:
    """Whether set_config() lasts, and what DO does, may be in the parameters."""
    assert effect_of("SELECT set_config(%s, %s, %s)").depends
    assert effect_of("SELECT set_config(%(a)s, %(b)s, %(c)s::bool)").depends
    assert effect_of("DO %s").depends
    assert not effect_of("SELECT set_config(%s, %s, true)").depends
    assert effect_of("SELECT set_config(%s, %s, false)") == Effect(silent=True)


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


PLAIN = [
    "SELECT * FROM tests_author WHERE id = %s",
    "SELECT count(*), max(a.id) FROM tests_author a JOIN tests_book b ON (a.id = b.author_id)"
    " WHERE a.name IN ('f(x)', 'g') AND (a.id > 1 OR lower(a.name) LIKE %s) GROUP BY (a.name)",
    "INSERT INTO tests_author (name) VALUES (%s) ON CONFLICT (name) DO UPDATE SET name = 'a'"
    " RETURNING id",
    "UPDATE tests_author SET name = upper(name) WHERE id = ANY (%s)",
    "DELETE FROM tests_author WHERE NOT EXISTS (SELECT 1)",
    "WITH x (a, b) AS (SELECT 1, 2) SELECT row_number() OVER (ORDER BY a) FROM x",
    "SELECT a.name::varchar(10), CAST(1 AS numeric(4, 2)), now() FROM tests_author a",
    "SELECT pg_catalog.now(), set_config('a.b', 'c', true)",
    "SET LOCAL ROLE x; SELECT 1",
    "SHOW work_mem",
]
NOT_PLAIN = [
    "SELECT my_function(1)",
    "SELECT public.lower('A')",
    'SELECT "my function"(1)',
    "CALL p()",
    "SELECT lower(my_function('a'))",
    "CREATE TABLE t (n int)",
    "DO $$ BEGIN END $$",
    "SELECT nextval('s')",
    "COPY t TO STDOUT",
    "EXECUTE p",
]


def test_plain() -> None:
    """A statement is plain if it calls nothing but the server's own harmless functions."""
    assert [each for each in PLAIN if not effect_of(each).plain] == []
    assert [each for each in [*NOT_PLAIN, *CHANGES] if effect_of(each).plain] == []


LONG = {
    "union": lambda k: "INSERT INTO t " + " UNION ALL ".join(["SELECT 1, 'x'"] * k),
    "set_config": lambda k: "SELECT " + ",".join(["set_config('a.b', 'c', true)"] * k),
    "set_config, literals": lambda k: "SELECT " + ",".join(["set_config('a', 'b', 'true')"] * k),
    "set_config, open": lambda k: "SELECT " + "set_config(" * k,
    "set_config, nested": lambda k: "SELECT " + "set_config('a'," * k + "'b'" + ", true)" * k,
    "literals": lambda k: "INSERT INTO t VALUES " + ",".join(["(1, 'select')"] * k),
    "declare": lambda k: "DECLARE " * k,
    "declare, hold": lambda k: "DECLARE c CURSOR FOR SELECT 1 hold;" * k,
    "select into": lambda k: "SELECT INTO " * k,
    "into temp": lambda k: "INSERT INTO temp SELECT 1;" * k,
    "create": lambda k: "CREATE TEMP TABLE t (a int) ON COMMIT DROP;" * k,
    "create, open": lambda k: "CREATE pg_temp " * k,
    "statements": lambda k: "SELECT 1;" * k,
    "comments": lambda k: "SELECT /* a */ 1, " * k,
    "comments, nested": lambda k: "SELECT /* /* /* /* */ */ */ */ 1, " * k,
    "comments, open": lambda k: "/* a " * k,
    "dollars": lambda k: "SELECT $$a$$, $b$c$b$, " * k,
    "dollars, open": lambda k: " ".join(f"$a{number}$" for number in range(k)),
    "identifiers": lambda k: 'SELECT "a"."b" FROM "c" ' * k,
    "escapes": lambda k: "SELECT E'\\'' || 'a';" * k,
    "quotes": lambda k: "'" * k,
    "spaces": lambda k: "SELECT" + " " * k + "1",
    "spaces before": lambda k: " " * k + "SELECT 1",
    "parentheses": lambda k: "(" * k,
    "explain": lambda k: "EXPLAIN (ANALYZE) " * k,
    "do": lambda k: "DO $$ BEGIN PERFORM 1; END $$;" * k,
    "do, long": lambda k: "DO $$ BEGIN " + "EXECUTE 'SELECT 1';" * k + " END $$",
    "definitions": lambda k: "CREATE VIEW v AS SELECT set_config(1);" * k,
    "do, in escapes": lambda k: "DO E'BEGIN\\n PERFORM \\x31;\\nEND';" * k,
    "do, unicode": lambda k: "DO U&'BEGIN END' UESCAPE '!';" * k,
    "do, one literal": lambda k: "DO E'" + "\\x20''\\n" * k + "'",
    "do, quotes": lambda k: "DO '" + "''a" * k + "'",
    "do, goes on": lambda k: "DO 'BEGIN'" + "\n' '" * k,
    "do, literals": lambda k: "DO " + "U&'a' 'b' " * k,
    "do, nested": lambda k: "".join(f"DO $a{n}$ BEGIN EXECUTE " for n in range(k)),
    "goes on": lambda k: "SELECT E'a'" + "\n'b'" * k,
    "does not go on": lambda k: "SELECT E'a'\n -- b\n c " * k,
    "unicode": lambda k: "SELECT U&'a' 'b' U&" * k,
    "search path": lambda k: "SET LOCAL search_path = pg_temp " * k,
    "functions": lambda k: "CREATE FUNCTION f() BEGIN ATOMIC SELECT set_config(1); " * k,
}


@pytest.mark.parametrize("name", LONG)
def test_time_is_linear(name: str) -> None:
    """Sixteen times the text takes about sixteen times as long, and not the square of it."""

    def seconds(size: int) -> float:
        unit = len(LONG[name](2)) - len(LONG[name](1))
        text = LONG[name](size // unit)
        times = []
        for _ in range(3):
            before = time.thread_time()
            effect_of(text)
            times.append(time.thread_time() - before)
        return min(times)

    assert seconds(200_000) < 128 * seconds(12_500)


def test_names_beyond_ascii() -> None:
    """A character beyond ASCII belongs to a name: no dollar quote, nor an E'', begins behind it."""
    assert effect_of("SELECT 1 AS €$x$; SET ROLE a; --$x$").silent
    assert effect_of("SELECT 1 AS ü$x$; SET ROLE a; --$x$").silent
    assert effect_of("SELECT 1 AS \u00a0e'\\'; SET ROLE a; --'").silent
    assert not effect_of("SELECT $é$; SET ROLE a; $é$").silent
