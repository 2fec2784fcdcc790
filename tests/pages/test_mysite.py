"""The examples that are files of a project: it is made of them, on the example project's models."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from websockets.sync.client import connect

from tests.pages.examples import example
from tests.pages.mysite import MySite
from tests.support.fix_uvicorn import need_pgtrigger
from tests.support.limits import PATIENCE
from tests.support.server import Server

pytestmark = pytest.mark.process

SETTINGS = example("docs/reference/installation.md", "DATABASES")
ASGI = example("docs/howto/development-server.md", "ASGIStaticFilesHandler")
ASGI_DEPLOYED = example("docs/howto/deployment.md", "LifespanApplication")
ASGI_WEBSOCKET = example("docs/reference/api.md", "BridgedApplication")
SCRIPT = example("docs/howto/workers-and-bots.md", "asyncio.run(main())")
COMMAND = example("docs/howto/workers-and-bots.md", "class Command")
CELERY = example("docs/howto/celery.md", "autodiscover_tasks")
CELERY_INIT = example("docs/howto/celery.md", "celery_app")
TASK = example("docs/howto/celery.md", "def start_cooking")
COROUTINE_TASK = example("docs/howto/celery.md", "async_to_sync")
MANY_TASK = example("docs/howto/celery.md", "def many_customers")
SEND = example("docs/howto/celery.md", "def place")
RUNNERS = [
    example("docs/howto/testing.md", "TEST_RUNNER"),
    example("docs/reference/tests.md", "TEST_RUNNER"),
]
TESTS = [
    example("docs/howto/testing.md", "class OrderTests"),
    example("docs/reference/tests.md", "class OrderTests"),
]
INI = example("docs/howto/testing.md", "pgbackend_bridge", "ini")
PYTEST = example("docs/howto/testing.md", "def test_page_in_a_thread")
PYTEST_ASYNCIO = example("docs/howto/testing.md", "pytest_asyncio")

# What the page of settings leaves to the project, and what Celery has instead of a broker.
MORE_SETTINGS = """
INSTALLED_APPS += [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "pgtrigger",
    "pgbackend.pubsub",
    "kitchen",
    "mysite",
]
CELERY_TASK_ALWAYS_EAGER = True
"""


@pytest.fixture(scope="module")
def made(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MySite]:
    """The project with a migrated database."""
    need_pgtrigger()
    site = MySite(server, "mysite", tmp_path_factory.mktemp("mysite"))
    try:
        runner, same = (each.text for each in RUNNERS)
        assert runner == same
        site.make(site.with_places(SETTINGS) + MORE_SETTINGS + runner)
        yield site
    finally:
        site.close()


@pytest.fixture
def mysite(made: MySite) -> Iterator[MySite]:
    """The project; its tables are emptied afterwards."""
    yield made
    made.all("TRUNCATE kitchen_dish, kitchen_customer RESTART IDENTITY CASCADE")


def add_orders(site: MySite, *customers: str) -> None:
    for name in customers:
        site.all(
            "WITH customer AS (INSERT INTO kitchen_customer (name) VALUES (%s) RETURNING id)"
            " INSERT INTO kitchen_order (customer_id, status, placed_at)"
            " SELECT id, 'placed', now() FROM customer",
            name,
        )


def test_asgi(mysite: MySite) -> None:
    """Pools are open before the first request; each application serves what its page says."""
    add_orders(mysite, "Ada")
    # All start at once, which takes no longer than one of them.
    started = []
    for number, asgi in enumerate((ASGI, ASGI_DEPLOYED, ASGI_WEBSOCKET)):
        asgi.write(mysite.folder / "mysite" / f"asgi_{number}.py")
        served = ("-m", "uvicorn", f"mysite.asgi_{number}:application", "--port=0")
        started.append(mysite.start(*served))
    for process in started:
        process.wait_until_served()
    assert mysite.count_backends() == len(started)
    for process in started:
        assert httpx.get(f"{process.url}/api/dishes/").json() == {"dishes": []}
    developed, deployed, with_websocket = started
    for process, status in ((developed, 200), (deployed, 404)):
        assert httpx.get(f"{process.url}/static/admin/css/base.css").status_code == status
    with connect(with_websocket.url.replace("http", "ws")) as websocket:
        websocket.send("1")
        assert websocket.recv(timeout=PATIENCE) == "Ada"
    for process in started:
        process.terminate()
        assert process.trouble() == [], process.output


def test_script(mysite: MySite) -> None:
    """The script prints what the page says."""
    add_orders(mysite, "Ada")
    SCRIPT.write(mysite.folder / "script.py")
    assert mysite.run(str(mysite.folder / "script.py")) == "Order 2 for Grace\n"


def test_command(mysite: MySite) -> None:
    """The command takes the orders that are placed, and ends with status 0 on SIGTERM."""
    add_orders(mysite, "Ada", "Grace", "Hedy")
    # As the page says, but not in a folder of the repository.
    COMMAND.write(mysite.folder / "mysite" / "management" / "commands" / "cook.py")
    process = mysite.start("-m", "django", "cook")
    mysite.wait_for(
        lambda: mysite.one("SELECT count(*) FROM kitchen_order WHERE status = 'cooking'") == 3
    )
    assert process.terminate() == 0, process.output
    assert process.trouble() == [], process.output


def test_celery(mysite: MySite) -> None:
    """Tasks are found, run in transactions, run coroutines, and are sent after the commit."""
    add_orders(mysite, "Ada", "Grace")
    package = mysite.folder / "mysite"
    CELERY.write(package / "celery.py")
    CELERY_INIT.write(package / "__init__.py")
    TASK.write(package / "tasks.py", after=f"{COROUTINE_TASK.text}\n{MANY_TASK.text}")
    SEND.write(package / "sending.py")
    script = """
import asyncio
import django
django.setup()
from celery import current_app
from django.db import connections
from kitchen.models import Customer
from mysite import sending, tasks
assert "mysite.tasks.start_cooking" in current_app.tasks
print(tasks.start_cooking.delay(1).get())
print(tasks.customers.delay([1, 2]).get())
print(tasks.many_customers.delay([1, 2]).get())
connections.close_all()

async def place():
    return await sending.place(await Customer.objects.aget(name="Ada"))

print(asyncio.run(place()))
"""
    try:
        assert mysite.run("-c", script).splitlines() == [
            "Ada",
            "['Grace', 'Ada']",
            "['Ada', 'Grace']",
            "Order 3",
        ]
    finally:
        # The other tests are of projects without Celery.
        (package / "__init__.py").write_text("")
    statuses = "SELECT status FROM kitchen_order ORDER BY id"
    assert mysite.all(statuses) == [("cooking",), ("placed",), ("cooking",)]


def test_test_cases(mysite: MySite) -> None:
    """The test cases of both pages pass with the runner that the settings name."""
    for number, tests in enumerate(TESTS):
        tests.write(mysite.folder / f"tests_{number}.py")
    output = mysite.tests("-m", "django", "test", "--noinput", "--pattern=tests_*.py")
    assert "System check identified no issues (0 silenced)." in output
    assert "Ran 5 tests" in output
    assert "\nOK\n" in output


def test_pytest(mysite: MySite) -> None:
    """The tests for pytest pass with the page's pytest.ini, beside those for pytest-asyncio."""
    INI.write(mysite.folder / "pytest.ini")
    PYTEST.write(mysite.folder / "test_orders.py")
    PYTEST_ASYNCIO.write(mysite.folder / "test_placed.py")
    names = ("pgbackend.pytest_plugin", "pytest_django.plugin", "pytest_asyncio.plugin")
    plugins = [argument for name in names for argument in ("-p", name)]
    # pytest-asyncio warns of a configuration without.
    scope = ("-o", "asyncio_default_fixture_loop_scope=function")
    output = mysite.tests("-m", "pytest", "-p", "no:cacheprovider", *plugins, *scope)
    assert " 5 passed in " in output
