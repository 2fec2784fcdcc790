"""The hub: one listening connection, whatever happens to it."""

import asyncio
from typing import Any

import psycopg
import pytest
from django.db import connection, connections
from django.test import override_settings

from pgbackend.pubsub import anotify
from pgbackend.pubsub.hub import Hub
from tests.faults.fix_servers import PgBouncer
from tests.pubsub.site import jobs
from tests.support.fix_loops import Main
from tests.support.proxy import Proxy
from tests.support.pubsub import effects, until, working
from tests.support.server import Server
from tests.support.wrapper import AddAlias


class Heard:
    """A subscriber that notes what it hears, and how often it was told to look."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.looks = 0

    def receive(self, name: str, payload: str) -> None:
        self.texts.append(payload)

    def look(self) -> None:
        self.looks += 1


def notify(server: Server, name: str, text: str) -> None:
    server.all("SELECT pg_notify(%s, %s)", name, text)


def listeners(server: Server) -> list[Any]:
    """Return the process ids of the backends that listen for a hub."""
    return server.all(
        "SELECT pid FROM pg_stat_activity WHERE query ~ '^(LISTEN|UNLISTEN|SELECT pg_notify)'"
        " AND pid <> pg_backend_pid()"
    )


def test_plain_handlers(run_main: Main) -> None:
    """A plain notification reaches coroutine functions and bridged functions, in their order."""

    async def main() -> None:
        async with working(jobs.Plain, jobs.PlainSync):
            for number in range(20):
                await anotify(jobs.PlainSync, number=number)
            await until(lambda: len(jobs.called) == 20)
            assert jobs.called == list(range(20))
            await anotify(jobs.Plain, number=20)
            await until(lambda: jobs.called[20:] == [20])
            await until(effects_are(list(range(21))))

    run_main(main())


def effects_are(numbers: list[int]) -> Any:
    async def holds() -> bool:
        return await effects() == numbers

    return holds


async def test_failing_plain_handler() -> None:
    """A plain handler that fails undoes its own transaction, and stops nothing else."""
    async with working(jobs.PlainSync, jobs.Plain) as worker:
        await anotify(jobs.PlainSync, number=1, do="fail")
        await anotify(jobs.Plain, number=2, do="exit")
        await anotify(jobs.PlainSync, number=3)
        await until(lambda: worker.progress.counts["handled"] == 3)
        assert worker.progress.counts["failed"] == 2
    # The asynchronous one has no transaction, so its effect stands.
    assert await effects() == [2, 3]


def test_lost_connection(run_main: Main, server: Server) -> None:
    """A hub whose connection is killed listens again, and looks for what it has missed."""

    async def main() -> None:
        heard = Heard()
        hub = Hub()
        hub.subscribe(["here"], heard.receive, heard.look)
        hub.start()
        await hub.listening(10)
        assert heard.looks == 1
        assert "listening" in repr(hub)
        (pid,) = listeners(server)[0]
        server.all("SELECT pg_terminate_backend(%s, 5000)", pid)
        await until(lambda: hub.state != "listening")
        await hub.listening(10)
        assert heard.looks == 2
        notify(server, "here", "again")
        await until(lambda: heard.texts == ["again"])
        assert hub.health()["losses"] == 1
        await hub.stop()
        assert hub.state == "stopped"

    run_main(main())


async def test_probe_of_before(server: Server) -> None:
    """A probe that an older connection was asked for does not end the one that is there now."""
    hub = Hub(probe_interval=0.05, probe_timeout=0.4)
    hub.start()
    await hub.listening(10)
    # The next probe is not heard, and its connection goes before it could say so.
    await hub.connection.execute(psycopg.sql.SQL("UNLISTEN *"))
    await asyncio.sleep(0.15)
    [[pid]] = await hub.connection.execute("SELECT pg_backend_pid()")
    server.all("SELECT pg_terminate_backend(%s, 5000)", pid)
    await until(lambda: hub.state != "listening")
    await hub.listening(10)
    await asyncio.sleep(0.6)
    assert hub.health()["losses"] == 1
    await hub.stop()


async def test_dropped_database(server: Server, add_alias: AddAlias) -> None:
    """A test database can be dropped while a hub listens in it."""
    server.all("CREATE DATABASE pgbackend_tests_dropped")
    alias = add_alias(NAME="pgbackend_tests_dropped")
    hub = Hub(alias)
    hub.start()
    await hub.listening(10)
    creation = connections[alias].creation
    await asyncio.to_thread(lambda: creation._destroy_test_db("pgbackend_tests_dropped", 0))
    assert not server.all("SELECT FROM pg_database WHERE datname = 'pgbackend_tests_dropped'")
    await hub.stop()


def test_silent_network(run_main: Main, server: Server, add_alias: AddAlias) -> None:
    """A connection that says nothing any more, without an error, is found out and replaced."""

    async def main() -> None:
        host, port = connection.settings_dict["HOST"], connection.settings_dict["PORT"]
        async with Proxy(host, int(port)) as proxy:
            alias = add_alias(HOST="127.0.0.1", PORT=proxy.port)
            heard = Heard()
            hub = Hub(alias, probe_interval=0.05, probe_timeout=0.3)
            hub.subscribe(["here"], heard.receive)
            hub.start()
            await hub.listening(10)
            proxy.freeze()
            notify(server, "here", "into the void")
            await until(lambda: hub.state != "listening")
            assert "did not answer within 0.3 s" in repr(hub) or "connecting" in repr(hub)
            proxy.finish()
            proxy.thaw()
            await hub.listening(10)
            notify(server, "here", "again")
            await until(lambda: "again" in heard.texts)
            await hub.stop()

    run_main(main())


async def test_no_server(add_alias: AddAlias) -> None:
    """A hub tries again while there is no server, and shows the server's own words."""
    hub = Hub(add_alias(HOST="127.0.0.1", PORT=1))
    hub.start()
    await until(lambda: hub.connection.failures >= 2)
    await until(lambda: hub.state == "lost")
    assert "refused" in repr(hub)
    assert "refused" in hub.health()["error"]
    await hub.stop()


async def test_wrong_password_is_in_no_repr(
    add_alias: AddAlias, asks_for_passwords: None, caplog: pytest.LogCaptureFixture
) -> None:
    """The password is neither in the repr of a hub that cannot connect nor in the log."""
    hub = Hub(add_alias(PASSWORD="canary in a coal mine"))
    hub.start()
    await until(lambda: hub.connection.failures >= 1)
    assert "canary" not in repr(hub) + str(hub.health()) + caplog.text
    assert "password authentication failed" in repr(hub)
    await hub.stop()


async def test_many_channels(server: Server) -> None:
    """One connection hears thousands of channels; subscriptions come and go while it listens."""
    heard = Heard()
    hub = Hub()
    hub.start()
    names = [f"channel_{number}" for number in range(3000)]
    subscriptions = [hub.subscribe([name], heard.receive) for name in names]
    await hub.listening(10)
    assert len(listeners(server)) == 1
    for name in names[::500]:
        notify(server, name, name)
    await until(lambda: heard.texts == names[::500])
    for each in subscriptions[1:]:
        each.close()
    await hub.listening(10)
    await until(lambda: len(hub._told) == 1)
    notify(server, names[1], "nobody")
    notify(server, names[0], "somebody")
    await until(lambda: heard.texts[-1] == "somebody")
    assert "nobody" not in heard.texts
    await hub.stop()


async def test_failing_subscriber(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """A subscriber that raises keeps the others from nothing."""

    def fail(name: str, payload: str) -> None:
        raise ValueError("a subscriber")

    heard = Heard()
    hub = Hub()
    hub.subscribe(["here"], fail)
    hub.subscribe(["here"], heard.receive)
    hub.start()
    await hub.listening(10)
    notify(server, "here", "one")
    await until(lambda: heard.texts == ["one"])
    assert "a subscriber of 'here' failed" in caplog.text
    await hub.stop()


async def test_reconcile() -> None:
    """Subscribers look again at intervals, without any notification."""
    heard = Heard()
    hub = Hub(reconcile_interval=0.02)
    hub.subscribe(["here"], heard.receive, heard.look)
    hub.start()
    await until(lambda: heard.looks >= 3)
    await hub.stop()


@pytest.mark.process
async def test_pgbouncer(pgbouncer: PgBouncer, server: Server, add_alias: AddAlias) -> None:
    """A pooler that shares sessions is found out at once; a DSN of its own is the cure."""
    alias = add_alias(HOST="127.0.0.1", PORT=pgbouncer.port)
    hub = Hub(alias, probe_timeout=0.5)
    heard = Heard()
    hub.subscribe(["here"], heard.receive)
    hub.start()
    await until(lambda: hub.connection.failures >= 1)
    assert "PGPUBSUB_LISTEN_DSN" in str(hub.connection.error)
    await hub.stop()
    info = psycopg.conninfo.conninfo_to_dict(server.dsn)
    dsn = psycopg.conninfo.make_conninfo("", host=info["host"], port=info["port"])
    with override_settings(PGPUBSUB_LISTEN_DSN={alias: dsn}):
        hub = Hub(alias)
        hub.subscribe(["here"], heard.receive)
        hub.start()
        await hub.listening(10)
        notify(server, "here", "one")
        await until(lambda: heard.texts == ["one"])
        await hub.stop()
