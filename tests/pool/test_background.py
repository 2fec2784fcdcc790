"""A pool's own tasks, and its end together with its loop or process."""

import asyncio
import gc
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from django.db import connections

from tests.support.limits import PATIENCE
from tests.support.loops import EACH_LOOP, LOOPS
from tests.support.pool import PID, at_once
from tests.support.server import Server
from tests.support.work import execute
from tests.support.wrapper import make_wrapper, run, until

ROOT = Path(__file__).parents[2]


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


@pytest.mark.parametrize("name", EACH_LOOP)
@pytest.mark.parametrize("yields", [0, 1, 3])
def test_loop_ends_as_a_task_is_cancelled(server: Server, name: str, yields: int) -> None:
    """The statement that the task leaves is stopped in the server, before the loop is closed."""

    async def main() -> None:
        task = asyncio.create_task(execute("SELECT pg_sleep(30)"))
        active = "SELECT pid FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(30)'"
        await until(lambda: server.all(active))
        task.cancel()
        for _ in range(yields):
            await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=LOOPS[name]) as runner:
        began = time.monotonic()
        runner.run(main())
    # A task that is destroyed while it waits is reported by then.
    gc.collect()
    server.wait_for_backends(0)
    assert time.monotonic() - began < 20
