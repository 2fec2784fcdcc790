"""Attributes of a wrapper, of each task and thread."""

import threading

from django.db import (
    connections,
    transaction,
)

from pgbackend import bridged
from tests.models import Author
from tests.support.server import Server
from tests.support.wrapper import PID, value


def test_synchronous_threads_have_connections_of_their_own() -> None:
    """Without a loop each thread has a connection of its own."""
    pids = [value(PID, "other")]

    def work() -> None:
        pids.append(value(PID, "other"))
        connections["other"].close()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(set(pids)) == 2


async def test_copy(server: Server) -> None:
    """A wrapper's copy() has transactions of its own."""

    @bridged
    def work() -> None:
        copy = connections["default"].copy()
        with transaction.atomic():
            Author.objects.create(name="Ada")
            assert not copy.in_atomic_block
            with copy.cursor() as cursor:
                cursor.execute("SELECT count(*) FROM tests_author")
                assert cursor.fetchone() == (0,)
        copy.close()

    await work()
    assert server.one("SELECT count(*) FROM tests_author") == 1
