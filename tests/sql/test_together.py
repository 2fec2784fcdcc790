"""Statements that are sent together: what each one gets, whatever happens to the others."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from django.db import transaction
from psycopg.pq import ExecStatus, TransactionStatus

from pgbackend import bridged
from pgbackend.sql.together import exchange
from tests.models import Author

OK, FAILED = ExecStatus.TUPLES_OK, ExecStatus.FATAL_ERROR


def send(*queries: str, savepoints: bool = False) -> list[Any]:
    """Send *queries* together in the open transaction; return the status of each, or None."""
    wrapper = transaction.get_connection()
    wrapper.ensure_connection()
    face = wrapper.state.lease.face
    with face.lock:
        found = face.wait(
            exchange(face, [query.encode() for query in queries], savepoints=savepoints)
        )
    return [None if each is None else each.status for each in found]


def status() -> TransactionStatus:
    return TransactionStatus(
        transaction.get_connection().state.lease.face.pgconn.transaction_status
    )


@bridged
def test_in_order() -> None:
    """Each query has its result, behind a BEGIN that was due."""
    with transaction.atomic():
        assert status() == TransactionStatus.IDLE
        assert send("SELECT 1", "SELECT 2 WHERE false", "TABLE tests_author") == [OK] * 3
        assert status() == TransactionStatus.INTRANS
        assert send("SELECT 1") == [OK]


@bridged
def test_failure() -> None:
    """Behind a failed query nothing runs, and the transaction is broken; no error spoils others."""
    with transaction.atomic():
        assert send("SELECT 1", "SELECT 1/0", "SELECT 2") == [OK, FAILED, None]
        assert status() == TransactionStatus.INERROR
        assert send("SELECT 1", "SELECT 2") == [FAILED, None]
        transaction.set_rollback(True)
    with transaction.atomic():
        # A query that cannot be parsed is the only one that fails, too.
        assert send("SELECT 1", "SELEC", "SELECT 2") == [OK, FAILED, None]
        transaction.set_rollback(True)


@bridged
def test_savepoints() -> None:
    """With savepoints those behind a failed query run, and the transaction is whole."""
    with transaction.atomic():
        found = send("SELEC", "SELECT 1", "SELECT 1/0", "SELECT 1/0", "SELECT 2", savepoints=True)
        assert found == [FAILED, OK, FAILED, FAILED, OK]
        assert status() == TransactionStatus.INTRANS
        assert send("SELECT 1", "SELECT 1/0", savepoints=True) == [OK, FAILED]
        assert status() == TransactionStatus.INTRANS
        # No savepoint is left.
        assert send("RELEASE SAVEPOINT pgbackend_gathered") == [FAILED]
        transaction.set_rollback(True)


@bridged
def test_savepoints_in_a_broken_transaction() -> None:
    """A savepoint that cannot be made is an error of all."""
    with transaction.atomic():
        send("SELECT 1/0")
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            send("SELECT 1", savepoints=True)
        transaction.set_rollback(True)


@bridged
def test_lost_connection() -> None:
    """The server's last words are the error of the query that they answer."""
    with pytest.raises(Exception, match="closed"), transaction.atomic():
        found = send("SELECT 1", "SELECT pg_terminate_backend(pg_backend_pid())", "SELECT 2")
        assert found == [OK, FAILED, None]


@bridged
def test_prefetched_columns_are_clean() -> None:
    """What Django selects to assign prefetched rows of a many-to-many relation is no raw SQL."""
    from pgbackend.session.clean import CleanSQL

    column = '"tests_author"."name"'
    name = "_prefetch_related_val_name"

    def is_clean(select: dict[str, str]) -> bool:
        compiler = Author.objects.extra(select=select).query.get_compiler("default")
        return type(compiler.as_sql()[0]) is CleanSQL

    assert is_clean({name: column})
    assert not is_clean({"name_too": column})
    assert not is_clean({name: "spoil()"})
    assert not is_clean({name: f"{column}, spoil()"})
