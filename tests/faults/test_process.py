"""Processes, loops and threads that begin and end: rows 22 to 24, 26, 33 and 36."""

import asyncio
import contextvars
import gc
import select
import socket
import threading

import pytest
from django.db import connection, connections, transaction

from pgbackend import BridgeError, await_bridged
from pgbackend.bridge.greenlets import run_bridged
from tests.faults.files import open_files
from tests.models import Author
from tests.support.limits import AT_ONCE, PATIENCE
from tests.support.loops import LOOPS
from tests.support.script import run_script
from tests.support.server import Server
from tests.support.sessions import committed, running
from tests.support.work import execute, fill, pid, settled, within
from tests.support.wrapper import AddAlias, until, use_wrapper

# A script that goes on after tests.support.script.PROLOGUE.
SETUP = """
settings.configure(**conf)
import django
django.setup()
import os
from django.db import connection
from tests.models import Author

async def pid():
    from pgbackend import bridged
    def ask():
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            return cursor.fetchone()[0]
    return await bridged(ask)()
"""


def script(source: str) -> str:
    """Run a script with Django set up and return what it prints; it must end cleanly."""
    return run_script(SETUP + source)


# Processes


@pytest.mark.process
def test_22_fork(server: Server) -> None:
    """A forked child opens connections of its own; the parent's go on working, untouched."""
    output = script(
        """
with asyncio.Runner() as runner:
    before = runner.run(pid())
    child = os.fork()
    if child == 0:
        with asyncio.Runner() as own:
            pids = {own.run(pid()), own.run(pid())}
        os._exit(0 if len(pids) == 1 and before not in pids else 3)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(status, runner.run(pid()) == before)
"""
    )
    assert output == "0 True\n"
    server.wait_for_backends(0)


@pytest.mark.process
def test_22_multiprocessing(server: Server) -> None:
    """Workers that multiprocessing forks off after a query have connections of their own."""
    output = script(
        """
import multiprocessing, warnings

def work(number):
    return asyncio.run(pid())

before = asyncio.run(pid())
with multiprocessing.get_context("fork").Pool(2) as pool:
    found = pool.map(work, range(6))
    pool.close()
    pool.join()
print(len(set(found)) == 6, before not in found, asyncio.run(pid()) > 0)
"""
    )
    assert output == "True True True\n"
    server.wait_for_backends(0)


@pytest.mark.process
@pytest.mark.parametrize(
    "end",
    [
        "asyncio.run(pid())",
        # On loan, in a statement, and in a transaction, when the loop ends.
        "async def main():\n"
        "    from django.db import transaction\n"
        "    async def block():\n"
        "        async with transaction.atomic():\n"
        "            await Author.objects.acreate(name='lost')\n"
        "            await asyncio.Event().wait()\n"
        "    asyncio.create_task(block())\n"
        "    while not connection.async_pool.get_stats().get('connections_ms'):\n"
        "        await asyncio.sleep(0.01)\n"
        "asyncio.run(main())",
        # A loop that nobody closes.
        "loop = asyncio.new_event_loop()\n"
        "loop.run_until_complete(pid())\n"
        "sys.stderr.flush()\n"
        "loop.run_until_complete(loop.shutdown_asyncgens())\n"
        "for task in asyncio.all_tasks(loop): task.cancel()\n"
        "loop.run_until_complete(asyncio.sleep(0.1))\n"
        "loop.close()",
    ],
    ids=["idle", "in a transaction", "loop closed by hand"],
)
def test_24_exit(end: str, server: Server) -> None:
    """A program that leaves its pool open exits with 0, silently, and leaves no backend."""
    assert script(end + "\nprint('end')") == "end\n"
    server.wait_for_backends(0)
    assert committed(server) == []


# Loops


def test_23_loops_one_after_another(runner: asyncio.Runner, server: Server) -> None:
    """Each loop has a pool of its own, which ends with it."""
    before = runner.run(pid())
    assert runner.run(pid()) == before
    runner.close()
    server.wait_for_backends(0)
    with asyncio.Runner(loop_factory=LOOPS["asyncio"]) as following:
        assert following.run(pid()) != before


def test_23_loops_in_threads(server: Server) -> None:
    """Loops that run at once, in threads, have a pool each, and no connection in common."""
    found: list[set[int]] = []
    barrier = threading.Barrier(4)

    async def main() -> None:
        pids = set(await asyncio.gather(*(pid() for _ in range(20))))
        barrier.wait(PATIENCE)
        found.append(pids)

    threads = [threading.Thread(target=asyncio.run, args=(main(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    assert len(set().union(*found)) == sum(map(len, found))
    server.wait_for_backends(0)


def test_24_loop_closed_with_the_pool_open(runner: asyncio.Runner, server: Server) -> None:
    """When a loop is closed its pool's sockets are, idle and on loan, and files are as before."""
    before = open_files()

    async def main() -> None:
        await fill(4)
        asyncio.create_task(execute("SELECT pg_sleep(600)"))  # noqa: RUF006  # it is left behind
        await until(lambda: running(server, "active") == 1)

    runner.run(main())
    runner.close()
    server.wait_for_backends(0)
    gc.collect()
    assert open_files() <= before


async def test_26_coroutine_closed_in_mid_query(server: Server) -> None:
    """A coroutine closed in mid-query closes its socket, and cannot await any more."""
    use_wrapper(options={"pool": {"max_size": 1}})
    await pid()
    await settled()
    refused: list[BaseException] = []

    def query() -> None:
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_sleep(600)")
        finally:
            with pytest.raises(BridgeError) as caught:
                await_bridged(asyncio.sleep(0))
            refused.append(caught.value)

    coroutine = run_bridged(query)
    coroutine.send(None)
    files = open_files()
    coroutine.close()
    assert len(refused) == 1
    assert await execute("SELECT 1") == 1
    assert (await settled())["pool_size"] == 1
    await until(lambda: running(server, "active") == 0)
    # The old socket is closed when the server has stopped the statement; the new one is open.
    await until(lambda: open_files() == files)


async def test_26_greenlet_collected(server: Server) -> None:
    """A bridged call dropped in mid-query closes its socket when collected; no query stays."""
    use_wrapper(options={"pool": {"max_size": 1}})
    await pid()
    await settled()
    coroutine = execute("SELECT pg_sleep(600)")
    coroutine.send(None)
    files = open_files()
    del coroutine
    gc.collect()
    assert await execute("SELECT 1") == 1
    assert (await settled())["pool_size"] == 1
    await until(lambda: running(server, "active") == 0)
    # The old socket is closed when the server has stopped the statement; the new one is open.
    await until(lambda: open_files() == files)


def test_33_loop_ends_while_connecting(runner: asyncio.Runner) -> None:
    """A loop ends although connections are being opened to a server that is silent."""

    async def main(port: int) -> None:
        use_wrapper(HOST="127.0.0.1", PORT=port)
        tasks = [asyncio.create_task(pid()) for _ in range(5)]
        # The system accepts for a server that does not.
        await until(lambda: select.select([silent], [], [], 0)[0])
        assert not any(task.done() for task in tasks)

    with socket.create_server(("127.0.0.1", 0)) as silent, within(AT_ONCE):
        runner.run(main(silent.getsockname()[1]))
        runner.close()


# Threads


async def test_36_loop_is_blocked(server: Server, add_alias: AddAlias) -> None:
    """A thread that hands a statement to a blocked loop gets a RuntimeError after turn_timeout."""
    alias = add_alias({"turn_timeout": 0.2})
    errors: list[BaseException] = []

    def work() -> None:
        try:
            # save() would mark the owner's block, as any error in it does.
            with connections[alias].cursor() as cursor:
                cursor.execute("INSERT INTO tests_author (name) VALUES ('lost')")
        except RuntimeError as error:
            errors.append(error)

    async with transaction.atomic(using=alias):
        await Author.objects.using(alias).acreate(name="owner")
        thread = threading.Thread(target=contextvars.copy_context().run, args=(work,))
        thread.start()
        # Nothing is awaited: the loop stands still.
        thread.join(PATIENCE)
    assert len(errors) == 1
    assert "the event loop did not take a thread's statement within 0.2 s" in str(errors[0])
    assert committed(server) == ["owner"]


@pytest.mark.parametrize("busy", [False, True], ids=["between statements", "in a statement"])
def test_36_loop_ends(server: Server, busy: bool) -> None:
    """A thread whose loop ends gets a RuntimeError, within bounds; nothing is committed."""
    entered, release = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            with transaction.atomic():
                Author.objects.create(name="thread")
                entered.set()
                if busy:
                    with connection.cursor() as cursor:
                        cursor.execute("SELECT pg_sleep(600)")
                else:
                    assert release.wait(PATIENCE)
                Author.objects.create(name="late")
        except BaseException as error:
            errors.append(error)

    async def main() -> None:
        async def owner() -> None:
            async with transaction.atomic():
                await Author.objects.acreate(name="owner")
                # The default executor's threads are waited for as the loop ends.
                context = contextvars.copy_context()
                threads.append(threading.Thread(target=context.run, args=(work,)))
                threads[0].start()
                await asyncio.Event().wait()

        asyncio.create_task(owner())  # noqa: RUF006  # it is left behind
        await until(entered.is_set)
        if busy:
            await until(lambda: running(server, "active", "%pg_sleep%") == 1)

    threads: list[threading.Thread] = []
    with within(PATIENCE):
        asyncio.run(main())
        release.set()
        threads[0].join(PATIENCE)
    assert not threads[0].is_alive()
    assert [isinstance(error, RuntimeError) for error in errors] == [True]
    server.wait_for_backends(0)
    assert committed(server) == []
