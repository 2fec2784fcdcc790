"""Positions in errors of statements that were sent behind others."""

from __future__ import annotations

import pickle
from typing import Any

import psycopg
import pytest
from django.db import DatabaseError, models, transaction
from django.test.utils import isolate_apps

from pgbackend import bridged
from pgbackend.session.clean import CleanSQL
from pgbackend.sql.direct import cursor_for
from tests.models import Author
from tests.support.threads import run_in_thread
from tests.support.wrapper import AddAlias


def described(error: BaseException) -> Any:
    """Return what an error says, of itself and of its cause, with all of its fields."""
    cause: Any = error.__cause__
    fields = {
        name: getattr(cause.diag, name)
        for name in dir(cause.diag)
        # Where in the server's own code.
        if not name.startswith(("_", "source_"))
    }
    again = pickle.loads(pickle.dumps(cause))
    assert again.diag.statement_position == fields["statement_position"]
    return type(error), str(error), type(cause), str(cause), cause.sqlstate, fields


WRONG = [
    "SELEC 1",
    "SELECT nothing FROM tests_author",
    "SELECT name,\n  nothing\nFROM tests_author",
    "\n" * 8 + "SELECT nothing FROM tests_author",
    "SELECT 'ä€𝄞' || name, nothing FROM tests_author",
    "SELECT name FROM tests_nowhere",
    "SELECT 'nothing\n2\n3', nothing FROM tests_author",
    "SELECT 1 / 0",
    "SELECT 'x'::int",
    "SELECT name::int FROM tests_author",
    "INSERT INTO tests_author (id, name) VALUES (99, NULL)",
    "SELECT jsonb_path_query('{}', 'strict $.a')",
    "SELECT nothing(1)",
    "SELECT " + "1 + " * 100 + "nothing FROM tests_author WHERE " + "1 = 1 AND " * 100 + "true",
]


@pytest.mark.parametrize("sql", WRONG, ids=range(len(WRONG)))
@pytest.mark.parametrize("isolation", ["read committed", "serializable"])
async def test_positions_of_errors(
    sql: str, isolation: str, stock: str, add_alias: AddAlias
) -> None:
    """An error says where it is in the statement, also if BEGIN was in one message with it."""
    level = psycopg.IsolationLevel[isolation.upper().replace(" ", "_")]
    alias = add_alias({"isolation_level": level})
    await Author.objects.acreate(name="Ada")

    def errors_of(alias: str) -> list[Any]:
        found = []
        for first in (True, False):
            with pytest.raises(DatabaseError) as caught, transaction.atomic(using=alias):
                if not first:
                    Author.objects.using(alias).count()
                connection = transaction.get_connection(alias)
                cursor: Any = (
                    connection.cursor()
                    if connection.settings_dict["ENGINE"].startswith("django.")
                    else cursor_for(connection, CleanSQL(sql))
                )
                with cursor:
                    cursor.execute(sql if alias == stock else CleanSQL(sql), None)
            found.append(described(caught.value))
        return found

    expected = run_in_thread(lambda: errors_of(stock))
    assert await bridged(errors_of)(alias) == expected


async def test_position_of_a_column_that_is_missing(stock: str) -> None:
    """A model's column that its table does not have is shown where it is in the statement."""

    @isolate_apps("tests")
    def make() -> Any:
        class Lacking(models.Model):
            nothing = models.TextField()

            class Meta:
                app_label = "tests"
                db_table = "tests_author"

        return Lacking

    model = make()

    def error_of(alias: str) -> Any:
        with pytest.raises(DatabaseError) as caught, transaction.atomic(using=alias):
            model._base_manager.using(alias).get(pk=1)
        return described(caught.value)

    expected = run_in_thread(lambda: error_of(stock))
    assert "LINE 1: " in expected[1]
    for _ in range(2):
        assert await bridged(error_of)("default") == expected
