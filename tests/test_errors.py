"""Errors of this backend's own."""

import asyncio
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction

from pgbackend import CommitInDoubt, bridged
from tests.conftest import Server
from tests.models import Author


async def test_a_lost_commit_is_in_doubt(server: Server) -> None:
    """A connection lost at COMMIT gives CommitInDoubt; no hooks run, the next block works."""
    ran: list[Any] = []
    server.all(
        "CREATE OR REPLACE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS"
        " $$BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END$$"
    )
    server.all(
        "CREATE CONSTRAINT TRIGGER die AFTER INSERT ON tests_author"
        " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION die()"
    )
    try:
        with pytest.raises(CommitInDoubt) as caught:
            async with transaction.atomic():
                await Author.objects.acreate(name="a")
                transaction.on_commit(lambda: ran.append(1))
        assert isinstance(caught.value, OperationalError)
        assert caught.value.__cause__ is not None
    finally:
        server.all("DROP TRIGGER die ON tests_author")
    assert ran == []
    async with transaction.atomic():
        await Author.objects.acreate(name="b")
    assert await Author.objects.acount() == 1


async def test_other_errors_are_not_in_doubt(server: Server) -> None:
    """An error that the server reports at COMMIT is not in doubt: nothing was committed."""

    def defer() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    with pytest.raises(OperationalError) as caught:
        async with transaction.atomic():
            await bridged(defer)()
    assert not isinstance(caught.value, CommitInDoubt)
    await asyncio.sleep(0)
