"""Databases that are not UTF8: what does not fit is the sender's error, and blocks no others."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from django.db import connections
from django.db.migrations.executor import MigrationExecutor

from pgbackend.pubsub import Channel, Notification, PayloadError, anotify_many, asend, listener
from pgbackend.pubsub.encoding import undo_escapes
from pgbackend.pubsub.worker import Worker
from tests.support.server import Server

seen: list[str] = []

# The names of the databases.
NAMES = {
    "LATIN1": "pgbackend_tests_latin",
    "SQL_ASCII": "pgbackend_tests_ascii",
}


@dataclass
class Said(Channel):
    lock_notifications = True
    retries = 0
    ordered_by = "key"
    text: str
    key: str | None = None


@listener(Said)
def hear(text: str, key: str | None) -> None:
    seen.append(text)
    if text == "fail":
        raise ValueError("costs 5 € in 東京")


@pytest.fixture(params=["LATIN1", "SQL_ASCII"])
def alias(server: Server, add_alias: Callable[..., str], request: Any) -> Iterator[str]:
    """The alias of a database of another encoding, which `Said` is sent through."""
    name = NAMES[request.param]
    server.all(f"DROP DATABASE IF EXISTS {name}")
    server.all(f"CREATE DATABASE {name} ENCODING '{request.param}' LOCALE 'C' TEMPLATE template0")
    Said.using = add_alias(NAME=name)
    executor = MigrationExecutor(connections[Said.using])
    executor.migrate(executor.loader.graph.leaf_nodes("pgpubsub"))
    seen.clear()
    yield Said.using
    Said.using = None
    for each in connections.all():
        each.close()
        each.close_pool()
    server.all(f"DROP DATABASE {name} WITH (FORCE)")


async def work() -> None:
    worker = Worker([Said])
    await worker.run(batch=True)
    assert await worker.stop()


async def test_what_does_not_fit(alias: str) -> None:
    """It is refused before anything is sent, and errors with it are noted by escapes."""
    with pytest.raises(PayloadError, match="'東' is not in the encoding"):
        await asend(Said("東京"))
    with pytest.raises(PayloadError, match="is not in the encoding"):
        await anotify_many([Said("one"), Said("東京")])
    await anotify_many([Said("fail"), Said("two")])
    await work()
    assert seen == ["fail", "two"]
    (dead,) = [each async for each in Notification.objects.using(alias)]
    assert "\\u20ac in \\u6771" in dead.last_error


async def test_what_is_no_text(alias: str, server: Server) -> None:
    """A row that cannot be decoded, as a trigger may store it, is dead, and keeps up no others."""
    with psycopg.connect(
        server.dsn, dbname=connections[alias].settings_dict["NAME"], client_encoding="SQL_ASCII"
    ) as conn:
        for key in (None, b"caf\xe9"):
            conn.execute(
                "INSERT INTO pgpubsub_notification (channel, payload, order_key) VALUES"
                " (convert_from(%s, 'LATIN1'),"
                " convert_from(%s, getdatabaseencoding())::jsonb, convert_from(%s,"
                " getdatabaseencoding()))",
                [Said.listen_name().encode(), b'{"kwargs":{"text":"caf\xe9 \\\\ \\""}}', key],
            )
    await asend(Said("last"))
    await work()
    states = Notification.objects.using(alias).values_list("state", flat=True)
    if await states.acount():
        assert [each async for each in states] == ["dead", "dead"]
        assert seen == ["last"]
    else:
        assert sorted(seen) == ['caf\xe9 \\ "', 'caf\xe9 \\ "', "last"]


def test_undo_escapes() -> None:
    """What is UTF-8 comes back as it was, and other bytes as halves of surrogate pairs."""
    assert undo_escapes("a\\\\b \\303\\251 \\351") == "a\\b é \udce9"
