"""Results and errors of the short way: those that Django's own backend has, of whichever kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import transaction

from pgbackend import bridged
from tests.models import Author
from tests.support.server import Server
from tests.support.threads import run_in_thread

RULES = {
    "insert, a row": "ON INSERT TO tests_author DO ALSO SELECT 70 AS id, 'also' AS name",
    "insert, rows": "ON INSERT TO tests_author DO ALSO SELECT * FROM generate_series(5, 9)",
    "insert, nothing": "ON INSERT TO tests_author DO ALSO NOTIFY tests",
    "update, a row": "ON UPDATE TO tests_author DO ALSO SELECT 70 AS id, 'also' AS name",
    "update, rows": "ON UPDATE TO tests_author DO ALSO SELECT * FROM generate_series(5, 9)",
    "update instead": "ON UPDATE TO tests_author DO INSTEAD SELECT * FROM generate_series(5, 9)",
    "delete, rows": "ON DELETE TO tests_author DO ALSO SELECT * FROM generate_series(5, 9)",
    "insert, two": "ON INSERT TO tests_author DO ALSO"
    " (SELECT 70; SELECT * FROM generate_series(5, 9))",
    "update, two": "ON UPDATE TO tests_author DO ALSO"
    " (SELECT * FROM generate_series(5, 9); SELECT 70 AS id, 'also' AS name)",
    "update instead, two": "ON UPDATE TO tests_author DO INSTEAD"
    " (SELECT 70 AS id, 'also' AS name; SELECT * FROM generate_series(5, 9))",
    "update, one of two": "ON UPDATE TO tests_author DO ALSO"
    " (SELECT 70; SELECT 1 / (random() * 0)::int)",
    "delete, two": "ON DELETE TO tests_author DO ALSO"
    " (SELECT * FROM generate_series(5, 9); SELECT 70)",
    "delete instead": "ON DELETE TO tests_author DO INSTEAD NOTHING",
    "a failure": "ON UPDATE TO tests_author DO ALSO SELECT 1 / (random() * 0)::int",
}


@pytest.fixture
def rule(request: pytest.FixtureRequest, server: Server) -> Iterator[None]:
    """A rule on the authors' table for the test."""
    server.all(f"CREATE RULE tests_also AS {RULES[request.param]}")
    yield
    server.all("DROP RULE tests_also ON tests_author")


def outcomes(alias: str, *, in_block: bool, first: bool) -> list[Any]:
    """Return what operations on authors come to: as the *first* of a block, or after another."""
    manager = Author._base_manager.using(alias)
    found: list[Any] = []

    def run(operation: Callable[[], Any]) -> None:
        try:
            if not in_block:
                found.append(operation())
                return
            with transaction.atomic(using=alias):
                if not first:
                    manager.count()
                found.append(operation())
        except Exception as error:
            found.append((type(error), str(error)))

    def saved() -> Any:
        author = Author(name="saved")
        author.save(using=alias)
        return author.pk, author.name

    def created() -> Any:
        rows = manager.bulk_create([Author(name="one"), Author(name="two")])
        return [(row.pk, row.name) for row in rows]

    def again() -> Any:
        author = manager.order_by("pk").first()
        author.name = f"{author.name}!"
        author.save(using=alias)
        return author.name

    run(saved)
    run(created)
    run(again)
    run(lambda: manager.filter(name__startswith="o").update(name="three"))
    run(lambda: sorted(manager.values_list("name", flat=True)))
    run(lambda: manager.filter(name="three")._raw_delete(alias))
    run(lambda: manager.all().delete())
    run(manager.count)
    return found


@pytest.mark.parametrize("rule", RULES, indirect=True)
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("in_block", [True, False])
async def test_several_results(
    rule: None, server: Server, stock: str, in_block: bool, first: bool
) -> None:
    """Where a rule makes several results, Django's is taken; an error in any of them is raised."""

    def run(alias: str) -> list[Any]:
        server.all("TRUNCATE tests_author RESTART IDENTITY CASCADE")
        return outcomes(alias, in_block=in_block, first=first)

    # Not in the bridge, as Django's own backend runs.
    expected = run_in_thread(lambda: run(stock))
    assert await bridged(run)("default") == expected


async def test_insert_that_a_trigger_skips(server: Server, stock: str) -> None:
    """An INSERT that a trigger turns into nothing ends as it does with Django's own backend."""
    server.all(
        "CREATE FUNCTION tests_skip() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'"
    )
    server.all(
        "CREATE TRIGGER tests_skip BEFORE INSERT OR UPDATE ON tests_author"
        " FOR EACH ROW EXECUTE FUNCTION tests_skip()"
    )
    try:
        for in_block in (True, False):
            expected = run_in_thread(lambda: outcomes(stock, in_block=in_block, first=True))  # noqa: B023
            assert await bridged(outcomes)("default", in_block=in_block, first=True) == expected
    finally:
        server.all("DROP FUNCTION tests_skip CASCADE")
