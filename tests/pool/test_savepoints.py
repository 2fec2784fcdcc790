"""`deferred_savepoint`: a block that raises is undone, and one that did nothing costs nothing."""

from contextlib import suppress

import pytest
from django.db import DatabaseError, IntegrityError, connection, transaction

from pgbackend import NotCommitted, bridged
from pgbackend.transaction import deferred_savepoint
from tests.models import Author
from tests.support.server import Server
from tests.support.wrapper import value


def names(server: Server) -> list[str]:
    return [name for (name,) in server.all("SELECT name FROM tests_author ORDER BY name")]


def write(name: str, how: str) -> None:
    """Write *name* by one of the ways to send a statement."""
    match how:
        case "orm":
            Author.objects.create(name=name)
        case "cursor":
            with connection.cursor() as cursor:
                cursor.execute("INSERT INTO tests_author (name) VALUES (%s)", [name])
        case "psycopg":
            connection.connection.execute("INSERT INTO tests_author (name) VALUES (%s)", [name])
        case "copy":
            with (
                connection.cursor() as cursor,
                cursor.copy("COPY tests_author (name) FROM STDIN") as copy,
            ):
                copy.write_row([name])
        case "atomic":
            with transaction.atomic():
                Author.objects.create(name=name)
        case "many":
            with connection.cursor() as cursor:
                cursor.executemany("INSERT INTO tests_author (name) VALUES (%s)", [[name]])


@pytest.mark.parametrize("how", ["orm", "cursor", "psycopg", "copy", "atomic", "many"])
@bridged
def test_blocks_that_raise(server: Server, how: str) -> None:
    """Whatever sent the statement: the blocks that raise are undone, and no others."""
    hooks: list[str] = []
    with transaction.atomic():
        saved = deferred_savepoint()
        for number in range(6):
            with suppress(ValueError), saved:
                write(f"{number}", how)
                transaction.on_commit(lambda number=number: hooks.append(f"{number}"))
                if number % 2:
                    raise ValueError
        write("after", how)
    assert names(server) == ["0", "2", "4", "after"]
    assert hooks == ["0", "2", "4"]


@bridged
def test_first_statement_of_the_transaction(server: Server) -> None:
    """The block may hold the first statement of its transaction, and the last."""
    with transaction.atomic():
        saved = deferred_savepoint()
        with suppress(ValueError), saved:
            write("undone", "orm")
            raise ValueError
        with saved:
            write("kept", "orm")
    assert names(server) == ["kept"]


@bridged
def test_blocks_without_statements(server: Server) -> None:
    """A block that sends nothing costs no statement, also one that raises."""
    with transaction.atomic():
        before = value("SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid()")
        saved = deferred_savepoint()
        for _ in range(3):
            with suppress(ValueError), saved:
                raise ValueError
        assert connection.connection.pgconn.transaction_status == 2
        assert before == value("SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid()")
    assert names(server) == []


@bridged
def test_failed_statements(server: Server) -> None:
    """A failed statement leaves the transaction well; one that was caught is told of."""
    with transaction.atomic():
        saved = deferred_savepoint()
        with pytest.raises(IntegrityError), saved:
            Author.objects.create(name=None)
        with pytest.raises(NotCommitted), saved:
            write("lost with it", "orm")
            with suppress(IntegrityError), transaction.atomic(savepoint=False):
                Author.objects.create(name=None)
        write("kept", "orm")
    assert names(server) == ["kept"]


async def test_outside_a_transaction() -> None:
    """Outside of a transaction, and of the bridge, an error names what is needed."""
    with pytest.raises(RuntimeError, match=r"needs an open transaction\.atomic"):
        deferred_savepoint().__enter__()
    with pytest.raises(RuntimeError, match="needs an open"):
        await bridged(deferred_savepoint().__enter__)()


@bridged
def test_strict(server: Server) -> None:
    """In strict blocks a COMMIT is refused, and settings end with the block."""
    with transaction.atomic():
        saved = deferred_savepoint(strict=True)
        with saved:
            write("one", "orm")
        with pytest.raises(NotCommitted), saved, suppress(DatabaseError):
            value("COMMIT")
        assert saved.has_ended
        transaction.set_rollback(True)
    assert names(server) == []
    with transaction.atomic():
        saved = deferred_savepoint(strict=True)
        with saved:
            write("one", "cursor")
            value("SELECT set_config('app.one', '1', true)")
        assert value("SELECT current_setting('app.one', true)") in ("", None)
        value(f"SELECT 1; {saved.before_commit}")
    assert names(server) == ["one"]


@bridged
def test_strict_blocks_of_the_orm(server: Server) -> None:
    """After statements of the ORM alone nothing is given back, and nothing sent."""
    with transaction.atomic():
        value("SELECT set_config('app.one', '1', true)")
        saved = deferred_savepoint(strict=True)
        for name in "ab":
            with saved:
                write(name, "orm")
        assert value("SELECT current_setting('app.one', true)") == "1"
        value(f"SELECT 1; {saved.before_commit}")
    assert names(server) == ["a", "b"]
