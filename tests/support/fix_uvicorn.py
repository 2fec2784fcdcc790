"""The example project, served by a uvicorn process of its own on a free port."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, LiteralString
from urllib.parse import urlencode, urlsplit

import psycopg
import pytest

from tests.support.limits import PATIENCE
from tests.support.server import Server

ROOT = Path(__file__).parents[2]

# What a process writes to stderr when an error, a warning or a task got lost.
TROUBLE = re.compile(r"Traceback|Exception|Warning:|^ERROR|was destroyed|never (awaited|retrieved)")


class Process:
    """A process that serves the site; *url* is where."""

    def __init__(self, command: list[str], environ: dict[str, str]) -> None:
        self.url = ""
        # What it has written so far; stdout and stderr are read as one.
        self.lines: list[str] = []
        self._serves = threading.Event()
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", *command],
            cwd=ROOT,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line)
            # uvicorn tells its address when it listens; proj.serve a moment before, but on a
            # socket on which who connects is queued.
            if not self.url and (address := re.search(r"http://[\d.]+:\d+", line)):
                self.url = address[0]
                self._serves.set()
        # It has ended: nobody need wait for it to come up.
        self._serves.set()

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def wait_until_served(self) -> None:
        """Wait until it listens; fail if it ends, or after PATIENCE."""
        self._serves.wait(PATIENCE)
        if not self.url or self._process.poll() is not None:
            self.kill()
            pytest.fail(f"the site did not come up:\n{self.output}")

    def wait_until_served_again(self, change: Callable[[], None]) -> None:
        """Make a *change* that a reloader sees, and wait until it listens anew."""
        self.url = ""
        self._serves.clear()
        change()
        self.wait_until_served()

    def terminate(self) -> int:
        """Send SIGTERM, wait until it has ended and return its exit status."""
        self._process.send_signal(signal.SIGTERM)
        return self._wait("SIGTERM")

    def interrupt(self) -> int:
        """Send SIGINT to it and its children, as Ctrl-C does, and return its exit status."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        for pid in [*map(int, children.read_text().split()), self._process.pid]:
            os.kill(pid, signal.SIGINT)
        return self._wait("SIGINT")

    def _wait(self, name: str) -> int:
        try:
            status = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            pytest.fail(f"the site has not ended {PATIENCE:g} s after {name}:\n{self.output}")
        self._join()
        return status

    def kill(self) -> None:
        """End it, whatever it does; without effect if it has ended."""
        self._process.kill()
        self._process.wait()
        self._join()

    def _join(self) -> None:
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()

    def trouble(self, since: int = 0) -> list[str]:
        """Return the lines, from number *since*, that tell of errors, warnings or lost tasks."""
        return [line for line in self.lines[since:] if TROUBLE.search(line)]


class Site:
    """The project on a database of its own: its processes, and a look at that database.

    *name* tells its database, and its backends by their application_name, from others.
    """

    def __init__(self, server: Server, name: str) -> None:
        self.name = f"pgbackend-{name}"
        self.database = f"pgbackend_tests_{name}"
        self.dsn = urlsplit(server.dsn)._replace(path=f"/{self.database}", query="").geturl()
        query = urlencode({"application_name": self.name})
        self.environ = {
            **os.environ,
            "DATABASE_URL": f"{self.dsn}?{query}",
            "DJANGO_SETTINGS_MODULE": "proj.settings",
            # The project would write them down in its folder otherwise.
            "SECRET_KEY": "tests",
            "RPC_KEY": "the key of the waiter's terminal in the tests",
            "PORT": "0",
            "PYTHONUNBUFFERED": "1",
        }
        self.server = server
        self.processes: list[Process] = []
        self.url = ""
        server.all(f"DROP DATABASE IF EXISTS {self.database} WITH (FORCE)")
        server.all(f"CREATE DATABASE {self.database}")
        self.conn = psycopg.connect(self.dsn, autocommit=True)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        self.conn.close()
        self.server.all(f"DROP DATABASE {self.database} WITH (FORCE)")

    # Processes

    def run(self, *command: str, **environ: str) -> str:
        """Run Python with arguments in the project, warnings as errors; return what it prints."""
        done = subprocess.run(
            [sys.executable, "-W", "error", *command],
            cwd=ROOT,
            env={**self.environ, **environ},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, *command: str, **environ: str) -> Process:
        """Start a process of the site's."""
        process = Process(list(command), {**self.environ, **environ})
        self.processes.append(process)
        return process

    def serve(self, *command: str, **environ: str) -> Process:
        """Start a process that serves the site, and wait until it does."""
        process = self.start(*command, **environ)
        process.wait_until_served()
        return process

    def pool_size(self) -> int:
        """Return the most connections that the project's settings allow its pool."""
        source = (
            "import json; from django.conf import settings;"
            " from pgbackend.pool.options import pool_arguments;"
            " options = settings.DATABASES['default']['OPTIONS'];"
            " print(json.dumps(pool_arguments('default', options.get('pool'))))"
        )
        return int(json.loads(self.run("-c", source))["max_size"])

    # The database, from outside

    def all(self, query: LiteralString, *params: Any) -> list[Any]:
        """Return all rows of a query, none for a statement without rows."""
        cursor = self.conn.execute(query, params or None)
        return cursor.fetchall() if cursor.description else []

    def one(self, query: LiteralString, *params: Any) -> Any:
        """Return the first column of a query's first row."""
        return self.all(query, *params)[0][0]

    def add_dish(self, name: str, stock: int, price: str = "10.00") -> int:
        """Put a dish on the menu and return its key."""
        return int(
            self.one(
                "INSERT INTO kitchen_dish (name, description, course, price, stock)"
                " VALUES (%s, '', 'main', %s, %s) RETURNING id",
                name,
                price,
                stock,
            )
        )

    def stock(self, dish: int) -> int:
        return int(self.one("SELECT stock FROM kitchen_dish WHERE id = %s", dish))

    def orders(self) -> int:
        return int(self.one("SELECT count(*) FROM kitchen_order"))

    def lines(self) -> int:
        return int(self.one("SELECT count(*) FROM kitchen_orderline"))

    def customers(self) -> int:
        return int(self.one("SELECT count(*) FROM kitchen_customer"))

    def wait_for_tickets(self) -> None:
        """Wait until the listeners have handled all that is stored."""
        self.wait_for(lambda: self.one("SELECT count(*) FROM pgpubsub_notification") == 0)

    def count_backends(self, condition: LiteralString = "true") -> int:
        """Return how many backends the site's processes have, those that meet a condition."""
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND "
        # Not on our own connection: in a transaction the server's view of itself stands still.
        return int(self.server.one(query + condition, self.name))

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until the server is in a state; fail after PATIENCE."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if condition():
                return
            self.server.all("SELECT pg_sleep(0.01)")
        left = self.server.all(
            "SELECT pid, state, wait_event, query FROM pg_stat_activity"
            " WHERE application_name = %s",
            self.name,
        )
        pytest.fail(f"not reached within {PATIENCE:g} s; the site's backends: {left}")


def need_pgtrigger() -> None:
    """Skip a test of the example project where the environment is older than the extra "dev"."""
    if find_spec("pgtrigger") is None:
        pytest.skip("left out: there is no django-pgtrigger; make test installs it")


UVICORN = ("-m", "uvicorn", "proj.asgi:application", "--port=0")


@pytest.fixture
def new_site(server: Server) -> Iterator[Site]:
    """The project with an empty database of its own; nothing serves it yet."""
    need_pgtrigger()
    site = Site(server, "new_site")
    yield site
    site.close()


@pytest.fixture(scope="module")
def served_site(server: Server) -> Iterator[Site]:
    """The project with a migrated database, served by uvicorn."""
    need_pgtrigger()
    site = Site(server, "kitchen")
    try:
        site.run("-m", "proj", "migrate", "--verbosity=0")
        site.url = site.serve(*UVICORN).url
        yield site
    finally:
        site.close()


@pytest.fixture
def site(served_site: Site) -> Iterator[Site]:
    """The served project; after the test its tables are emptied.

    Whatever a test did, the process must not have written of an error, a warning or a lost task.
    """
    process = served_site.processes[0]
    written = len(process.lines)
    yield served_site
    served_site.wait_for_tickets()
    served_site.all(
        "TRUNCATE kitchen_dish, kitchen_customer, auth_user, django_session"
        " RESTART IDENTITY CASCADE"
    )
    assert process.trouble(written) == [], process.output
