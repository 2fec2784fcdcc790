"""A real PostgreSQL for the tests: the one that --dsn or PGBACKEND_TEST_DSN names, or one
started for the run.

Asynchronous tests run as they are, each on an event loop of its own. After each test no
backend of ours may be left in the server, and the tables are emptied.
"""

import asyncio
import gc
import inspect
import itertools
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from typing import Any

import psycopg
import pytest

from proj import postgres
from tests.django_suite.server import THROWAWAY, in_memory, make_logins_cheap
from tests.support.server import DATABASES, NAME, Server

pytest_plugins = (
    "tests.support.fix_loops",
    "tests.support.fix_told",
    "tests.support.fix_stock",
    "tests.support.fix_uvicorn",
    "tests.support.fix_waiter",
    "tests.support.left_early",
    "tests.faults.fix_reports",
    "tests.faults.fix_servers",
    # After that, which it imports.
    "tests.support.fix_chromium",
)

# The tables that a test has written to, also where that was rolled back: such a table has pages,
# or its sequence has a value. To empty all tables after each test takes longer than most tests.
WRITTEN = """
SELECT string_agg(quote_ident(relname), ', ') FROM pg_class written
WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname NOT LIKE 'django_m%'
    AND (pg_relation_size(oid) > 0 OR EXISTS (
        SELECT FROM pg_depend JOIN pg_class sequence ON sequence.oid = objid
        WHERE classid = 'pg_class'::regclass AND refobjid = written.oid AND CASE
            sequence.relkind WHEN 'S' THEN pg_sequence_last_value(sequence.oid) IS NOT NULL END
    ))
"""

_folder: Path | None = None

# The numbers of the aliases that tests add.
_aliases = itertools.count()

# The processes that this one has started since the test began.
_started: list[str] = []


def note_start(event: str, args: Any) -> None:
    """Note what starts a process. It is called for each event that Python audits."""
    if event in ("subprocess.Popen", "os.fork", "os.posix_spawn"):
        _started.append(f"{event}{args[:2]}")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--dsn",
        default=os.environ.get("PGBACKEND_TEST_DSN"),
        help="URL of a PostgreSQL superuser; databases pgbackend_tests* are made anew there."
        " Without it a server is started for the run.",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run all tests in one process where they have one server: --dsn names it."""
    if config.getoption("--dsn") and getattr(config.option, "numprocesses", None):
        config.option.numprocesses = 0
        config.option.dist = "no"


def pytest_configure(config: pytest.Config) -> None:
    global _folder
    if getattr(config.option, "numprocesses", None) and not hasattr(config, "workerinput"):
        # The workers of pytest-xdist run the tests, each with a server of its own.
        return
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # As shells start what they put in the background. Processes of tests would inherit it,
        # and there are tests of Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    dsn = config.getoption("--dsn")
    if not dsn:
        _folder = Path(tempfile.mkdtemp(prefix="pgbackend-tests-", dir=in_memory()))
        server = postgres.start(_folder, THROWAWAY)
        make_logins_cheap(server)
        dsn = server.url
    os.environ["PGBACKEND_TEST_DSN"] = dsn
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
    with psycopg.connect(dsn, autocommit=True) as conn:
        for name in DATABASES:
            conn.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            conn.execute(f"CREATE DATABASE {name}")

    import django
    from django.apps import apps
    from django.core.management import call_command
    from django.db import connections

    django.setup()
    for alias in connections:
        call_command("migrate", database=alias, run_syncdb=True, verbosity=0)
    call_command("createcachetable", verbosity=0)
    if apps.is_installed("pgtrigger"):
        # The models' tables have no migrations, which would install the triggers.
        import_module("pgtrigger").install()
    sys.addaudithook(note_start)
    # So that the first test, too, begins without connections.
    for connection in connections.all():
        connection.close()
        connection.close_pool()


def pytest_sessionfinish() -> None:
    """Collect what tests have left: what that logs is not for the plugins' summaries."""
    gc.collect()


def pytest_unconfigure(config: pytest.Config) -> None:
    if _folder is not None:
        postgres.stop(_folder)
        shutil.rmtree(_folder)


# The files that run first, by their names: those that count calls, since other tests change how far
# a call goes, and those that run longest, so that no worker has one left when the others end.
FIRST = (
    "test_counts.py",
    "test_pytest_plugin.py",
    "test_test.py",
    "test_load.py",
    "test_detector.py",
    "test_kitchen.py",
    "test_instrumentation.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the files of `FIRST` first, in that order."""
    order = {name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(item.path.name, len(FIRST)))


def pytest_collection_finish() -> None:
    """Let no collection of garbage look at modules and tests, of which there are many."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    _started.clear()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape lone surrogates in what was captured: pytest-xdist cannot send them."""
    report = yield
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an asynchronous test to its end on a loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    with asyncio.Runner() as runner:
        runner.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The server the tests run against."""
    server = Server(os.environ["PGBACKEND_TEST_DSN"])
    yield server
    server.conn.close()
    server.other.close()


@pytest.fixture(autouse=True)
def clean(request: pytest.FixtureRequest, server: Server) -> Iterator[None]:
    """Check that nothing of ours is left in the server, and empty the tables.

    A test that starts a process has to have the mark for that.
    """
    from django.contrib.contenttypes.models import ContentType
    from django.db import connections

    wrappers = {alias: connections[alias] for alias in connections}
    yield
    connections.close_all()
    for connection in connections.all():
        # Django's own pool of the synchronous path.
        connection.close_pool()
    # A test that is no task has replaced them for all that come after it.
    for alias, wrapper in wrappers.items():
        connections[alias] = wrapper
    try:
        server.wait_for_backends(0)
    finally:
        for conn in (server.conn, server.other):
            (tables,) = conn.execute(WRITTEN).fetchone()
            if tables:
                conn.execute(f"TRUNCATE {tables} RESTART IDENTITY CASCADE")
        ContentType.objects.clear_cache()
    if _started and not request.node.get_closest_marker("process"):
        pytest.fail(f"without the mark `process` the test has started {_started}")


@pytest.fixture
def add_alias() -> Iterator[Callable[..., str]]:
    """A function that adds an alias for the test: `default`'s settings with changes.

    Its positional argument replaces OPTIONS, application_name aside; keywords replace other
    settings. It returns the new alias.
    """
    from django.db import connections

    added: list[str] = []

    def add(options: dict[str, Any] | None = None, **changes: Any) -> str:
        # Another one in each test: what a process counts of an alias is kept.
        alias = f"added{next(_aliases)}"
        conf = {**deepcopy(connections.settings["default"]), **changes}
        conf["OPTIONS"] = {"application_name": NAME, **(options or {})}
        connections.settings[alias] = conf
        added.append(alias)
        return alias

    yield add
    for alias in added:
        connections[alias].close()
        connections[alias].close_pool()
        del connections[alias]
        del connections.settings[alias]
