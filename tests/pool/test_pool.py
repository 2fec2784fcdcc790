"""Pools: how settings reach them, what failing to connect says, and that nothing is lost."""

import asyncio
import random
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import DataError, OperationalError, ProgrammingError, connections, transaction
from django.db.backends.signals import connection_created

from pgbackend import bridged
from pgbackend.base import DatabaseWrapper
from pgbackend.bridge.greenlets import await_bridged, run_bridged
from tests.models import Author
from tests.support.limits import AT_ONCE, PATIENCE
from tests.support.server import Server
from tests.support.table_lock import TableLock
from tests.support.wrapper import make_wrapper, run, until, use_wrapper

PID = "SELECT pg_backend_pid()"

ROOT = Path(__file__).parents[2]


@contextmanager
def at_once() -> Iterator[None]:
    """Check that the block takes far less than a pool's time-out."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < AT_ONCE


async def settled(wrapper: DatabaseWrapper) -> dict[str, int]:
    """Return the pool's statistics once all connections are back; fail after PATIENCE.

    A connection that was closed is replaced by a task of the pool.
    """

    def stats_if_settled() -> dict[str, int] | None:
        stats = wrapper.async_pool.get_stats()
        idle = stats["pool_available"] == stats["pool_size"] and not stats["requests_waiting"]
        return stats if idle else None

    stats: dict[str, int] = await until(stats_if_settled)
    return stats


class Held:
    """A connection on loan to a task of its own until the block is left."""

    def __init__(self, wrapper: DatabaseWrapper) -> None:
        self.wrapper = wrapper
        self.release = asyncio.Event()
        self.held = asyncio.Event()

    async def __aenter__(self) -> None:
        self.task = asyncio.create_task(run_bridged(self.hold))
        await asyncio.wait_for(self.held.wait(), PATIENCE)

    async def __aexit__(self, *exc_info: Any) -> None:
        self.release.set()
        await self.task

    def hold(self) -> None:
        with self.wrapper.cursor():
            self.held.set()
            await_bridged(self.release.wait())


async def waiting(wrapper: DatabaseWrapper, count: int) -> None:
    """Wait until *count* tasks wait for a connection of the pool; fail after PATIENCE."""
    await until(lambda: wrapper.async_pool.get_stats()["requests_waiting"] == count)


# Settings


@pytest.mark.parametrize("pool", [None, True, False, {}])
async def test_defaults(pool: Any) -> None:
    """Without arguments the pool has the documented sizes and times."""
    async_pool = make_wrapper(options={"pool": pool}).async_pool
    assert (async_pool.min_size, async_pool.max_size) == (0, 20)
    assert (async_pool.timeout, async_pool.max_waiting) == (30.0, 1000)
    assert (async_pool.max_lifetime, async_pool.max_idle) == (3600.0, 600.0)
    assert async_pool.name == "default"


async def test_pool_without_the_option() -> None:
    """An alias whose OPTIONS say nothing of a pool has one with the defaults."""
    wrapper = make_wrapper("other")
    assert "pool" not in wrapper.settings_dict["OPTIONS"]
    assert wrapper.async_pool.max_size == 20


async def test_arguments_reach_the_pool() -> None:
    """What the dict says is what the pool has; the rest keeps its default."""
    pool = make_wrapper(
        options={"pool": {"min_size": 1, "max_size": 3, "timeout": 2.5, "name": "kitchen"}}
    ).async_pool
    assert (pool.min_size, pool.max_size, pool.timeout, pool.name) == (1, 3, 2.5, "kitchen")
    assert pool.max_waiting == 1000


async def test_min_size_alone_is_the_size() -> None:
    """A lower bound without an upper one makes a pool of that size, as in psycopg_pool."""
    pool = make_wrapper(options={"pool": {"min_size": 25}}).async_pool
    assert (pool.min_size, pool.max_size) == (25, 25)


async def test_min_size_is_filled() -> None:
    """A pool with a lower bound opens that many connections unasked."""
    wrapper = make_wrapper(options={"pool": {"min_size": 2, "max_size": 3}})
    assert wrapper.async_pool.get_stats()["pool_size"] == 2
    assert (await settled(wrapper))["pool_available"] == 2


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        (
            {"maxsize": 5, "min_siez": 1},
            r"unknown keys: 'maxsize' \(did you mean 'max_size'\?\),"
            r" 'min_siez' \(did you mean 'min_size'\?\); known are .*max_size",
        ),
        ({"configure": print}, r"unknown keys: 'configure'"),
        ({"min_size": 5, "max_size": 2}, r"max_size must be greater or equal than min_size"),
        ({"min_size": -1}, r"\['min_size'\] is a whole number of 0 or more, not -1"),
        ({"max_size": "8"}, r"\['max_size'\] is a whole number of 1 or more, or None, not '8'"),
        ({"max_size": None}, r"without a max_size, min_size must be greater than 0"),
        ({"timeout": float("nan")}, r"\['timeout'\] is a number of seconds above 0, not nan"),
        ({"timeout": float("inf")}, r"\['timeout'\] is a number of seconds above 0, not inf"),
        ({"max_idle": 0}, r"\['max_idle'\] is a number of seconds above 0, not 0"),
        ({"check": "yes"}, r"\['check'\] is a function, or None, not 'yes'"),
        ("big", r"is a bool or a dict, not 'big'"),
        (5, r"is a bool or a dict, not 5"),
    ],
)
async def test_bad_options(pool: Any, message: str) -> None:
    """Bad pool options are ImproperlyConfigured that names the setting and what is wrong."""
    use_wrapper(options={"pool": pool})
    setting = r"DATABASES\['default'\]\['OPTIONS'\]\['pool'\]"
    with pytest.raises(ImproperlyConfigured, match=f"{setting}.*{message}"):
        await Author.objects.acount()


# Connecting fails


async def error_of_django(**changes: Any) -> Exception:
    """Return what Django's own synchronous path raises with these settings."""

    error = await asyncio.to_thread(_error_of, make_wrapper(**changes))
    assert error is not None, "Django connected"
    return error


def _error_of(wrapper: DatabaseWrapper) -> Exception | None:
    """Return what connecting on the synchronous path raises, without Django's own pool."""
    wrapper.settings_dict["OPTIONS"].pop("pool")
    wrapper.inc_thread_sharing()
    try:
        wrapper.ensure_connection()
    except Exception as error:
        return error
    finally:
        wrapper.close()
    return None


async def check_failure(error: type[Exception], message: str, **changes: Any) -> None:
    """Check that a query fails at once, for each of several tasks, as on Django's own path."""
    expected = await error_of_django(**changes)
    assert type(expected) is error
    use_wrapper(**changes)
    with at_once():
        results = await asyncio.gather(
            *(Author.objects.acount() for _ in range(20)), return_exceptions=True
        )
    for result in results:
        assert type(result) is error
        assert message in str(result)
        assert str(result) == str(expected)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def test_refused_port() -> None:
    """A port where nobody listens is OperationalError at once, in libpq's words."""
    await check_failure(OperationalError, "Connection refused", PORT=free_port())


async def test_unknown_host() -> None:
    """A host that does not resolve is OperationalError at once."""
    changes = {"HOST": "no-such-host.invalid"}
    expected = await error_of_django(**changes)
    use_wrapper(**changes)
    with at_once(), pytest.raises(OperationalError) as caught:
        await Author.objects.acount()
    # The resolver's words are Python's in one case and libpq's in the other.
    assert type(expected) is type(caught.value)
    assert "PoolTimeout" not in repr(caught.value.__cause__)


async def test_unknown_database() -> None:
    """A database that does not exist is OperationalError at once, in the server's words."""
    await check_failure(
        OperationalError,
        'database "pgbackend_tests_none" does not exist',
        NAME="pgbackend_tests_none",
    )


async def test_unknown_role() -> None:
    """A role that does not exist is OperationalError at once, in the server's words."""
    # A server that asks for a password does not tell whether the role exists.
    await check_failure(OperationalError, '"pgbackend_nobody"', USER="pgbackend_nobody")


async def test_unknown_assumed_role() -> None:
    """What fails while a connection is made ready is told at once too."""
    await check_failure(
        DataError,
        'role "pgbackend_nobody" does not exist',
        options={"assume_role": "pgbackend_nobody"},
    )


async def test_bad_connection_option() -> None:
    """An option that psycopg does not know is named, at once."""
    await check_failure(
        ProgrammingError,
        'invalid connection option "no_such_option"',
        options={"no_such_option": 1},
    )


async def test_failing_receiver() -> None:
    """What a receiver of connection_created raises reaches whoever asked for the connection."""

    def receiver(**kwargs: Any) -> None:
        raise LookupError("no such setting")

    connection_created.connect(receiver)
    try:
        with at_once(), pytest.raises(LookupError, match="no such setting"):
            await Author.objects.acount()
    finally:
        connection_created.disconnect(receiver)
    assert await Author.objects.acount() == 0


async def test_wrong_password_mended(server: Server) -> None:
    """A wrong password is told at once; once it is right, the same pool connects."""
    server.all("CREATE ROLE pgbackend_guest LOGIN PASSWORD 'right'")
    try:
        wrapper = make_wrapper(USER="pgbackend_guest", PASSWORD="wrong")
        if not isinstance(await asyncio.to_thread(_error_of, wrapper.copy()), OperationalError):
            pytest.skip("the server given by --dsn asks for no password")
        refused = r'password authentication failed for user "pgbackend_guest"'
        with at_once(), pytest.raises(OperationalError, match=refused):
            await run(wrapper, PID)
        pool = wrapper.async_pool
        server.all("ALTER ROLE pgbackend_guest PASSWORD 'wrong'")
        with at_once():
            assert await run(wrapper, "SELECT current_user") == "pgbackend_guest"
        assert wrapper.async_pool is pool
    finally:
        server.all("DROP ROLE pgbackend_guest")


async def test_missing_database_mended(server: Server) -> None:
    """After a failure the next attempt works as soon as its cause is gone."""
    name = "pgbackend_tests_late"
    wrapper = make_wrapper(NAME=name)
    with pytest.raises(OperationalError, match=f'database "{name}" does not exist'):
        await run(wrapper, PID)
    server.all(f"CREATE DATABASE {name}")
    try:
        with at_once():
            assert await run(wrapper, "SELECT current_database()") == name
        assert (await settled(wrapper))["pool_size"] == 1
    finally:
        server.all(f"DROP DATABASE {name} WITH (FORCE)")


async def test_failure_leaves_other_connections_alone(server: Server) -> None:
    """A task waits for a connection on loan when no further one can be opened."""
    name = "pgbackend_tests_closing"
    server.all(f"CREATE DATABASE {name}")
    wrapper = make_wrapper(NAME=name)
    try:
        async with Held(wrapper):
            server.all(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            other = asyncio.create_task(run(wrapper, "SELECT 1"))
            await until(lambda: wrapper.async_pool.get_stats().get("connections_errors"))
            assert not other.done()
        assert await asyncio.wait_for(other, PATIENCE) == 1
    finally:
        server.all(f"DROP DATABASE {name} WITH (FORCE)")


# Exhaustion


async def test_exhausted_pool_times_out() -> None:
    """With all connections on loan a query fails after ``timeout``, naming pool and settings."""
    wrapper = make_wrapper(options={"pool": {"max_size": 1, "timeout": 0.2, "name": "small"}})
    async with Held(wrapper):
        started = time.monotonic()
        with pytest.raises(OperationalError) as caught:
            await run(wrapper, PID)
        assert 0.2 <= time.monotonic() - started < AT_ONCE
    for words in (
        "'small'",
        "0.2 s",
        "all 1 are",
        "'timeout'",
        "'max_size'",
        "DATABASES['default']",
    ):
        assert words in str(caught.value)
    assert (await settled(wrapper))["pool_size"] == 1
    assert await run(wrapper, "SELECT 1") == 1


async def test_too_many_waiting_is_refused_at_once() -> None:
    """Beyond ``max_waiting`` a query fails at once, and those that wait are served later."""
    wrapper = make_wrapper(options={"pool": {"max_size": 1, "max_waiting": 2}})
    async with Held(wrapper):
        waiters = [asyncio.create_task(run(wrapper, "SELECT 1")) for _ in range(2)]
        await waiting(wrapper, 2)
        with at_once(), pytest.raises(OperationalError, match="max_waiting") as caught:
            await run(wrapper, PID)
        for words in ("'default'", "max_size 1", "2 tasks", "DATABASES['default']"):
            assert words in str(caught.value)
    assert await asyncio.gather(*waiters) == [1, 1]


async def test_many_tasks_stay_within_max_size(server: Server) -> None:
    """64 tasks of 100 queries each never hold more than 8 backends, and leave none on loan."""
    await Author.objects.acreate(name="Ada")
    most = 0
    done = threading.Event()

    def sample() -> None:
        nonlocal most
        while not done.is_set():
            most = max(most, server.backends())
            server.all("SELECT pg_sleep(0.002)")

    async def queries() -> int:
        return sum([(await Author.objects.aget(name="Ada")).pk for _ in range(100)])

    sampler = asyncio.create_task(asyncio.to_thread(sample))
    pk = (await Author.objects.aget()).pk
    try:
        results = await asyncio.gather(*(queries() for _ in range(64)))
    finally:
        done.set()
        await sampler
    assert results == [100 * pk] * 64
    assert most == 8
    stats = await settled(connections["default"])
    assert (stats["pool_size"], stats["pool_available"]) == (8, 8)
    assert stats["requests_waiting"] == 0


async def test_queries_outside_a_transaction_run_in_parallel(server: Server) -> None:
    """Tasks lease a connection each: they run on different backends at the same time."""
    wrapper = make_wrapper(options={"pool": {"max_size": 5}})
    query = "SELECT pg_backend_pid() FROM (SELECT count(*) FROM tests_author) AS counted"
    with TableLock(server, "tests_author") as lock:
        tasks = [asyncio.create_task(run(wrapper, query)) for _ in range(5)]
        await lock.waited_for(5)
        lock.release()
        assert len(set(await asyncio.gather(*tasks))) == 5


# Opening


async def test_first_requests_open_one_pool() -> None:
    """Twenty tasks that race to be the first share one pool, whose size bounds them all."""
    wrapper = make_wrapper(options={"pool": {"max_size": 3}})

    def pool_and_pid() -> tuple[Any, int]:
        with wrapper.cursor() as cursor:
            cursor.execute(PID)
            return wrapper.async_pool, cursor.fetchone()[0]

    results = await asyncio.gather(*(run_bridged(pool_and_pid) for _ in range(20)))
    assert len({pool for pool, _ in results}) == 1
    assert 1 <= len({pid for _, pid in results}) <= 3


async def test_copies_with_the_same_settings_share_a_pool() -> None:
    """Wrappers of different contexts with equal settings use one pool."""
    assert make_wrapper().async_pool is connections["default"].async_pool


async def test_copies_with_other_settings_have_another_pool() -> None:
    """A wrapper's copy with settings of its own never gets the other's connections."""
    wrapper = make_wrapper()
    copy = wrapper.copy()
    copy.settings_dict["NAME"] = connections["other"].settings_dict["NAME"]
    assert await run(wrapper, "SELECT current_database()") == "pgbackend_tests"
    assert await run(copy, "SELECT current_database()") == "pgbackend_tests_other"
    with_options = make_wrapper(options={"options": "-c work_mem=7MB"})
    assert await run(with_options, "SHOW work_mem") == "7MB"
    assert await run(wrapper, "SHOW work_mem") != "7MB"


# connection_created


@contextmanager
def receiving(receiver: Any) -> Iterator[None]:
    connection_created.connect(receiver)
    try:
        yield
    finally:
        connection_created.disconnect(receiver)


async def test_connection_created_once_for_each_connection() -> None:
    """Receivers run once for a physical connection, before its first use by anybody."""
    created: list[int] = []

    def receiver(connection: Any, **kwargs: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(PID)
            created.append(cursor.fetchone()[0])

    with receiving(receiver):
        wrapper = make_wrapper(options={"pool": {"max_size": 3}})
        used = [await run(wrapper, PID) for _ in range(3)]
        async with Held(wrapper), Held(wrapper):
            used += [await run(wrapper, PID) for _ in range(3)]
        await settled(wrapper)
    assert len(created) == len(set(created)) == 3
    assert set(used) <= set(created)


async def test_receivers_settings_stay() -> None:
    """What a receiver SETs is there for every borrower, and stays for the next."""

    def receiver(connection: Any, **kwargs: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET statement_timeout = '77s'")

    with receiving(receiver):
        wrapper = make_wrapper(options={"pool": {"max_size": 2}})
        for _ in range(3):
            assert await run(wrapper, "SHOW statement_timeout") == "77s"
        async with Held(wrapper):
            assert await run(wrapper, "SHOW statement_timeout") == "77s"


async def test_receiver_may_use_connections_with_a_pool_of_one() -> None:
    """``connections[alias].cursor()`` in a receiver is the connection in hand: no deadlock."""
    seen: list[int] = []

    def receiver(connection: Any, **kwargs: Any) -> None:
        with connections[connection.alias].cursor() as cursor:
            cursor.execute(PID)
            seen.append(cursor.fetchone()[0])

    with receiving(receiver):
        wrapper = make_wrapper(options={"pool": {"max_size": 1, "timeout": 5.0}})
        with at_once():
            pid = await run(wrapper, PID)
    assert seen == [pid]


async def test_receiver_may_use_the_orm_with_a_pool_of_one() -> None:
    """The ORM and a transaction in a receiver run on the connection in hand, too."""
    counts: list[int] = []

    def receiver(connection: Any, **kwargs: Any) -> None:
        with transaction.atomic(using=connection.alias):
            counts.append(Author.objects.using(connection.alias).count())

    with receiving(receiver):
        use_wrapper(options={"pool": {"max_size": 1, "timeout": 5.0}})
        with at_once():
            assert await Author.objects.acount() == 0
    assert counts == [0]


# Loops and processes


def test_loops_one_after_another(server: Server) -> None:
    """Each event loop has a pool of its own, which ends with the loop."""

    async def main() -> int:
        pid: int = await run(connections["default"], PID)
        assert server.backends() == 1
        return pid

    pids = []
    for _ in range(2):
        pids.append(asyncio.run(main()))
        server.wait_for_backends(0)
    assert pids[0] != pids[1]


def test_loops_in_two_threads() -> None:
    """Loops that run at the same time in two threads have a pool each."""
    barrier = threading.Barrier(2)
    pids: list[set[int]] = []

    async def main() -> None:
        wrapper = make_wrapper(options={"pool": {"max_size": 3}})
        found = set(await asyncio.gather(*(run(wrapper, PID) for _ in range(50))))
        barrier.wait(PATIENCE)
        pids.append(found)

    threads = [threading.Thread(target=asyncio.run, args=(main(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pids) == 2
    assert not pids[0] & pids[1]


def test_loop_ends_with_a_connection_on_loan(server: Server) -> None:
    """asyncio.run ends, and closes what is on loan, when a query runs in a task left behind."""

    async def main() -> None:
        task = asyncio.create_task(run(connections["default"], "SELECT pg_sleep(600)"))
        active = "SELECT 1 FROM pg_stat_activity WHERE query = %s AND state = 'active'"
        await until(lambda: server.all(active, "SELECT pg_sleep(600)"))
        assert not task.done()

    with at_once():
        asyncio.run(main())
    server.wait_for_backends(0)


def test_loop_ends_while_a_connection_is_being_opened() -> None:
    """asyncio.run ends although a server that never answers is being connected to."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepted = []

        async def main() -> None:
            listener.setblocking(False)
            wrapper = make_wrapper(PORT=listener.getsockname()[1])
            task = asyncio.create_task(run(wrapper, PID))
            conn, _ = await asyncio.get_running_loop().sock_accept(listener)
            accepted.append(conn)
            # The client's first packet: it waits for the answer from here on.
            assert await asyncio.get_running_loop().sock_recv(conn, 8)
            assert not task.done()

        with at_once():
            asyncio.run(main())
        for conn in accepted:
            conn.close()


def in_process(code: str) -> str:
    """Run *code* in a Python of its own; check its status and that it complains of nothing."""
    program = "import django\ndjango.setup()\n" + textwrap.dedent(code)
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        cwd=ROOT,
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


@pytest.mark.process
def test_process_ends_cleanly() -> None:
    """A program that leaves its pool open ends with status 0 and nothing on stderr."""
    output = in_process(
        """
        import asyncio
        from tests.models import Author

        async def main():
            await asyncio.gather(*(Author.objects.acount() for _ in range(10)))
            print(await Author.objects.acount())

        asyncio.run(main())
        """
    )
    assert output == "0\n"


@pytest.mark.process
def test_process_ends_cleanly_with_a_query_running() -> None:
    """A program whose last task is in a query ends with status 0 and nothing on stderr."""
    output = in_process(
        """
        import asyncio
        from django.db import connection
        from pgbackend import bridged

        started = asyncio.Event()

        def query():
            with connection.cursor() as cursor:
                asyncio.get_running_loop().call_soon(started.set)
                cursor.execute("SELECT pg_sleep(600)")

        async def main():
            asyncio.create_task(bridged(query)())
            await started.wait()
            print("end")

        asyncio.run(main())
        """
    )
    assert output == "end\n"


@pytest.mark.process
def test_fork() -> None:
    """A forked child connects by itself, and the parent's connection goes on working."""
    output = in_process(
        """
        import asyncio, gc, os, sys
        from tests.support.wrapper import make_wrapper, run

        wrapper = make_wrapper(options={"pool": {"max_size": 1}})

        def pid(runner):
            return runner.run(run(wrapper, "SELECT pg_backend_pid()"))

        with asyncio.Runner() as runner:
            before = pid(runner)
            child = os.fork()
            if child == 0:
                gc.collect()
                with asyncio.Runner() as own:
                    different = pid(own) != before
                os._exit(0 if different else 3)
            _, status = os.waitpid(child, 0)
            print(os.waitstatus_to_exitcode(status), pid(runner) == before)
        """
    )
    assert output == "0 True\n"


# What happens to connections


async def test_old_connections_are_replaced(server: Server) -> None:
    """A connection is replaced once it is older than ``max_lifetime``."""
    wrapper = make_wrapper(options={"pool": {"max_size": 1, "max_lifetime": 0.05}})
    first = await run(wrapper, PID)
    async with asyncio.timeout(PATIENCE):
        while await run(wrapper, PID) == first:
            pass
    await settled(wrapper)
    server.wait_for_backends(1)


async def test_connection_killed_while_idle() -> None:
    """An idle connection that the server closed costs at most one query, then is replaced."""
    wrapper = make_wrapper(options={"pool": {"max_size": 1}})
    killer = make_wrapper("other")
    pid = await run(wrapper, PID)
    await run(killer, "SELECT pg_terminate_backend(%s, 10000)", [pid])
    with suppress(OperationalError):
        await run(wrapper, PID)
    assert await run(wrapper, PID) != pid
    assert (await settled(wrapper))["pool_size"] == 1


async def test_connection_killed_while_idle_with_health_checks() -> None:
    """With CONN_HEALTH_CHECKS an idle connection that the server closed costs no query."""
    wrapper = make_wrapper(options={"pool": {"max_size": 1}}, CONN_HEALTH_CHECKS=True)
    killer = make_wrapper("other")
    pid = await run(wrapper, PID)
    await run(killer, "SELECT pg_terminate_backend(%s, 10000)", [pid])
    with at_once():
        assert await run(wrapper, PID) != pid
    assert (await settled(wrapper))["pool_size"] == 1


async def test_connection_killed_in_use(server: Server) -> None:
    """A connection killed in a query fails that query and is replaced in the pool."""
    wrapper = make_wrapper(options={"pool": {"max_size": 1}})
    pid = await run(wrapper, PID)
    query = asyncio.create_task(run(wrapper, "SELECT pg_sleep(600)"))
    kill = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = %s AND state = 'active'"
    )
    await until(lambda: server.all(kill, pid))
    with pytest.raises(OperationalError, match="terminating connection"):
        await query
    assert await run(wrapper, PID) != pid
    assert (await settled(wrapper))["pool_size"] == 1


async def test_connection_killed_in_a_transaction(server: Server) -> None:
    """A connection killed between two statements of a transaction fails it and is replaced."""
    wrapper = use_wrapper(options={"pool": {"max_size": 1}})

    def transfer() -> None:
        with transaction.atomic():
            Author.objects.create(name="lost")
            with wrapper.cursor() as cursor:
                cursor.execute(PID)
                server.all("SELECT pg_terminate_backend(%s, 10000)", cursor.fetchone()[0])
            Author.objects.create(name="lost too")

    with pytest.raises(OperationalError):
        await run_bridged(transfer)
    assert await Author.objects.acount() == 0
    assert (await settled(wrapper))["pool_size"] == 1


# Cancellation while waiting


async def test_cancelled_waiters_lose_no_connection() -> None:
    """Of 200 tasks that wait for a connection, half are cancelled; the others get theirs."""
    wrapper = make_wrapper(options={"pool": {"max_size": 2}})
    async with Held(wrapper), Held(wrapper):
        tasks = [asyncio.create_task(run(wrapper, "SELECT 1")) for _ in range(200)]
        await waiting(wrapper, 200)
        for task in tasks[::2]:
            task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])
    assert results[1::2] == [1] * 100
    assert (await settled(wrapper))["pool_size"] == 2
    async with Held(wrapper), Held(wrapper):
        pass


async def test_cancellation_during_checkout_is_never_lost() -> None:
    """Whenever a task is cancelled, CancelledError ends it and its connection is given back."""
    wrapper = make_wrapper(options={"pool": {"max_size": 4}})
    chance = random.Random(1)
    await run(wrapper, PID)
    for _ in range(20):
        tasks = [asyncio.create_task(run(wrapper, "SELECT 1")) for _ in range(50)]
        accepted = []
        for task in chance.sample(tasks, 25):
            for _ in range(chance.randrange(3)):
                await asyncio.sleep(0)
            if task.cancel():
                accepted.append(task)
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in accepted)
        assert all(task.result() == 1 for task in tasks if not task.cancelled())
    stats = await settled(wrapper)
    assert stats["pool_size"] <= 4
    async with Held(wrapper), Held(wrapper), Held(wrapper), Held(wrapper):
        pass


async def test_cancelled_borrower_gives_its_connection_back() -> None:
    """A task cancelled while it holds a connection leaves nothing on loan."""
    wrapper = make_wrapper(options={"pool": {"max_size": 1}})
    held = Held(wrapper)
    async with asyncio.timeout(PATIENCE):
        task = asyncio.create_task(run_bridged(held.hold))
        await held.held.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert wrapper.async_pool.get_stats()["pool_available"] == 1


async def test_closed_coroutine_gives_its_connection_back() -> None:
    """A bridged call whose coroutine is closed while it holds a connection gives it back."""
    wrapper = make_wrapper(options={"pool": {"max_size": 1}})
    pid = await run(wrapper, PID)
    await until(lambda: wrapper.async_pool.get_stats()["pool_available"] == 1)
    # With a connection idle in the pool, the call comes to its own wait in one step.
    held = Held(wrapper)
    coroutine = run_bridged(held.hold)
    coroutine.send(None)
    assert held.held.is_set()
    coroutine.close()
    assert wrapper.async_pool.get_stats()["pool_available"] == 1
    assert await run(wrapper, PID) == pid


@pytest.mark.parametrize("granted", [False, True])
async def test_closed_coroutine_loses_no_connection_that_it_waited_for(granted: bool) -> None:
    """A call whose coroutine is closed while it waits for a connection leaves none on loan."""
    wrapper = make_wrapper(options={"pool": {"max_size": 1}})
    held = Held(wrapper)
    holder = asyncio.create_task(run_bridged(held.hold))
    await held.held.wait()
    coroutine = run_bridged(held.hold)
    coroutine.send(None)
    assert wrapper.async_pool.get_stats()["requests_waiting"] == 1
    if not granted:
        coroutine.close()
    holder.cancel()
    with pytest.raises(asyncio.CancelledError):
        await holder
    # The connection is given on without waiting, before the call can take it.
    coroutine.close()
    assert (await settled(wrapper))["pool_available"] == 1
    assert await run(wrapper, "SELECT 1") == 1


async def test_close_pool() -> None:
    """close_pool() in bridged code closes the loop's pool; the next query opens another."""
    wrapper = make_wrapper()
    first = await run(wrapper, PID)
    pool = wrapper.async_pool
    await run_bridged(wrapper.close_pool)
    assert pool.closed
    assert await run(wrapper, PID) != first


async def test_close_pool_of_threads(server: Server, add_alias: Callable[..., str]) -> None:
    """In the bridge, close_pool() closes the pool that threads have for the alias, too."""
    alias = add_alias({"pool": {"min_size": 0, "max_size": 2}})

    def use() -> None:
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT 1")
        connections[alias].close()

    await asyncio.to_thread(use)
    await bridged(use)()
    assert server.backends() == 2
    await bridged(connections[alias].close_pool)()
    server.wait_for_backends(0)
