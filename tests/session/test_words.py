"""Words that may stand before a parenthesis without an effect on the session."""

from __future__ import annotations

from pgbackend.session.text import effect_of
from tests.support.statements import CHANGES

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
