"""The text of SQL, masked as the server reads it."""

from __future__ import annotations

import time

import pytest

from pgbackend.session.clean import changes_session
from pgbackend.session.text import effect_of
from tests.support.statements import CHANGES, HARMLESS


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


def test_characters_of_names() -> None:
    """Of ASCII, letters, digits and "_" belong to a name and to a tag, and "$" to a name."""
    # Quotes begin something themselves.
    characters = [chr(number) for number in (*range(0x101), 0x2028, 0xD7FF, 0xFFFF, 0x10FFFF)]
    for character in sorted({*characters} - {"'", '"'}):
        word = not character.isascii() or character.isalnum() or character == "_"
        behind = effect_of(f"SELECT 1 AS a{character}$x$; SET ROLE a; --$x$")
        assert behind.silent is (word or character == "$"), character
        if character != "$":
            tagged = effect_of(f"SELECT $a{character}$; SET ROLE a; $a{character}$")
            assert tagged.silent is not word, character
