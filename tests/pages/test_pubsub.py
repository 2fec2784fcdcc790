"""The pages about channels: the tutorial's project with channels, and what the how-to pages add."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator

import django
import pytest

from tests.pages.examples import example
from tests.pages.mysite import MySite
from tests.support.server import Server

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(
        importlib.util.find_spec("pgtrigger") is None, reason="django-pgtrigger is not installed"
    ),
]

FIRST = "docs/tutorial/first-project.md"
APPS = example(FIRST, "INSTALLED_APPS")
DATABASES = example(FIRST, "DATABASES")
MODELS = example(FIRST, "models.Model")
RUNNER = example(FIRST, "TEST_RUNNER")

PAGE = "docs/tutorial/pubsub.md"
MORE_APPS = example(PAGE, "INSTALLED_APPS")
CHANNEL = example(PAGE, "class OrderChannel")
LISTENER = example(PAGE, "def print_ticket")
TICKET = example(PAGE, "class Ticket(")
CONFIG = example(PAGE, "class ShopConfig")
OWN_CHANNEL = example(PAGE, "class SoldOutChannel")
SENDING = example(PAGE, "def sold_out")
TESTS = example(PAGE, "class TicketTests")

FROM_PGPUBSUB = "docs/howto/pubsub-from-django-pgpubsub.md"
TAKEN_OVER = example(FROM_PGPUBSUB, "INSTALLED_APPS")
ALIAS = example(FROM_PGPUBSUB, "as_pgpubsub")
TESTING = "docs/howto/pubsub-testing.md"
SENDING_TESTS = example(TESTING, "class SendingTests")
LISTENER_TESTS = example(TESTING, "class ListenerTests")
ORDERED = example("docs/howto/pubsub-ordering.md", "ordered_by")
LONG = example("docs/howto/pubsub-long-tasks.md", "class ReportChannel")
FROM_CELERY = "docs/howto/pubsub-from-celery.md"
BACKEND = example(FROM_CELERY, "TASKS = ")
TASKS = example(FROM_CELERY, "def send_receipt")
ENQUEUE = example(FROM_CELERY, "def order_placed")
PERIODIC = example("docs/howto/pubsub-periodic.md", "class NightlyChannel")
STOCK = example("docs/howto/pubsub-periodic.md", "class StockChannel")
PERIODIC_TASK = example("docs/howto/pubsub-periodic.md", "def enqueue_add")
UNIQUE = example("docs/reference/pubsub.md", "class ReindexChannel")
WAITING = example("docs/howto/pubsub-monitoring.md", "def waiting")
DSN = example("docs/howto/pubsub-pgbouncer.md", "PGPUBSUB_LISTEN_DSN")

# Several commands in one process, which saves the start of the others.
MANAGE = """
import json, sys
from django.core.management import execute_from_command_line
for command in json.loads(sys.argv[1]):
    execute_from_command_line(["manage.py", *command])
"""

# The tutorial's command; it ends when nothing is left, and logs errors only.
LISTEN = ("-m", "django", "listen", "--batch", "--loglevel=error")

LOOK = """
import django
django.setup()
from shop.monitoring import waiting
print(*waiting())
"""


@pytest.fixture(scope="module")
def site(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MySite]:
    """The first project, with all that the tutorial adds, and what the other pages show."""
    site = MySite(server, "pubsub_project", tmp_path_factory.mktemp("pubsub"))
    try:
        make(site)
        yield site
    finally:
        site.close()


def make(site: MySite) -> None:
    package, shop = site.folder / "mysite", site.folder / "shop"
    start = [["startproject", "mysite", str(site.folder)]]
    site.run("-c", MANAGE, json.dumps(start), DJANGO_SETTINGS_MODULE="")
    # The folders of `startapp`.
    (shop / "migrations").mkdir(parents=True)
    for folder in (shop, shop / "migrations"):
        (folder / "__init__.py").touch()
    settings = [
        (package / "settings.py").read_text(),
        APPS.text,
        MORE_APPS.text,
        site.with_places(DATABASES),
        RUNNER.text,
    ]
    if django.VERSION >= (6, 0):
        settings.append(BACKEND.text)
        TASKS.write(shop / "tasks.py")
        ENQUEUE.write(shop / "enqueueing.py")
        PERIODIC_TASK.write(shop / "periodic_task.py")
    (package / "settings.py").write_text("\n".join(settings))
    MODELS.write(shop / "models.py", after=f"\n\n{TICKET.text}")
    more = f"{OWN_CHANNEL.text}\n\n{ORDERED.text}\n\n{UNIQUE.text}"
    CHANNEL.write(shop / "channels.py", after=f"\n\n{more}")
    PERIODIC.write(shop / "periodic.py", after=f"\n\n{STOCK.text}")
    LISTENER.write(shop / "listeners.py", after=f"\n\n{LONG.text}")
    CONFIG.write(shop / "apps.py")
    SENDING.write(shop / "sending.py")
    WAITING.write(shop / "monitoring.py")
    for number, tests in enumerate((TESTS, SENDING_TESTS, LISTENER_TESTS)):
        tests.write(shop / f"test_{number}.py")
    manage(site, ["makemigrations", "shop"], ["migrate", "--verbosity=0"])


def manage(site: MySite, *commands: list[str]) -> str:
    """Run commands of the pages and return what they print."""
    return site.run("-c", MANAGE, json.dumps(commands))


def test_tutorial(site: MySite) -> None:
    """An order that is inserted by any means has one ticket, printed by the listener."""
    output = manage(site, ["check", "--database", "default"])
    assert "System check identified no issues" in output
    site.all("INSERT INTO shop_dish (id, name, stock) VALUES (1, 'Soup', 5)")
    site.all("INSERT INTO shop_order (dish_id, quantity) VALUES (1, 2)")
    waiting = (
        "import django; django.setup(); from shop.monitoring import waiting; print(*waiting())"
    )
    assert "'state': 'ready', 'count': 1" in site.run("-c", waiting)
    assert site.run(*LISTEN) == "Ticket for order 1\n"
    assert site.all("SELECT order_id, text FROM shop_ticket") == [(1, "2 x 1")]
    assert site.run(*LISTEN) == ""
    assert site.one("SELECT count(*) FROM pgpubsub_notification") == 0


def test_tests(site: MySite) -> None:
    """The test cases of the pages pass."""
    output = site.tests("manage.py", "test")
    assert "Ran 5 tests" in output
    assert "\nOK\n" in output


def test_other_channels(site: MySite) -> None:
    """A report is made on a lease; the pages' channels are well."""
    script = """
import django
django.setup()
from pgbackend.pubsub import notify
notify("shop.listeners.ReportChannel", month="May")
notify("shop.channels.StockChannel", dish_id=1, change=-1)
from pgbackend.pubsub import Notification
print(sorted(Notification.objects.values_list("order_key", flat=True), key=str))
Notification.objects.filter(order_key="1").delete()
"""
    assert site.run("-c", script) == "['1', None]\n"
    assert site.run(*LISTEN) == "Report for May\n"


@pytest.mark.skipif(django.VERSION < (6, 0), reason="django.tasks is there since Django 6.0")
def test_tasks(site: MySite) -> None:
    """Tasks of the page are enqueued in the transaction, and run."""
    script = """
import django
django.setup()
from shop.enqueueing import order_placed
result = order_placed(5)
print(result.status, result.task.run_after is not None)
"""
    assert site.run("-c", script) == "READY True\n"
    assert site.run(*LISTEN) == "Receipt for order 5\n"
    statuses = "SELECT path, status FROM pgpubsub_taskrecord ORDER BY path"
    assert site.all(statuses) == [
        ("shop.tasks.add", "READY"),
        ("shop.tasks.send_receipt", "SUCCESSFUL"),
    ]


@pytest.mark.skipif(
    importlib.util.find_spec("cronsim") is None,
    reason="left out: cronsim, of the extra cron, is not installed",
)
def test_periodic(site: MySite) -> None:
    """The clock's channels pass the checks, and their listeners are called, one for a task, too."""
    module = "shop.periodic" if django.VERSION < (6, 0) else "shop.periodic_task"
    script = f"""
import datetime
import django
django.setup()
import {module}
from django.core.management import call_command
from pgbackend.pubsub import notify
due = datetime.datetime(2026, 1, 5, 4, 30, tzinfo=datetime.UTC)
notify("shop.periodic.NightlyChannel", due=due)
channels = ["shop.periodic.NightlyChannel", "shop.periodic.CleaningChannel"]
call_command("listen", batch=True, channels=channels, loglevel="error")
"""
    assert site.run("-c", script) == "0 tickets at 04:30\n"
    if django.VERSION >= (6, 0):
        (count,) = site.all("SELECT count(*) FROM pgpubsub_taskrecord WHERE args = '[5, 2]'")
        assert count == (1,)
        site.all("DELETE FROM pgpubsub_taskrecord WHERE args = '[5, 2]'")
        site.all("DELETE FROM pgpubsub_notification")
    assert site.one("SELECT count(*) FROM pgpubsub_periodicrecord") == 2


def test_unique(site: MySite) -> None:
    """Of two with the same values one waits."""
    script = """
import django
django.setup()
from pgbackend.pubsub import send, Notification
from shop.channels import ReindexChannel
print(send(ReindexChannel(3)) == send(ReindexChannel(3)) != send(ReindexChannel(4)))
Notification.objects.all().delete()
"""
    assert site.run("-c", script) == "True\n"


def test_imports_of_django_pgpubsub(site: MySite) -> None:
    """A project that keeps its imports has one line more in its settings."""
    settings = site.folder / "mysite" / "settings.py"
    kept = ALIAS.text + settings.read_text() + TAKEN_OVER.text
    (site.folder / "mysite" / "kept.py").write_text(kept)
    script = """
import django
django.setup()
from pgpubsub import Channel, notify
from pgpubsub.listeners import post_insert_listener
from pgbackend import pubsub
print(Channel is pubsub.Channel, notify is pubsub.notify)
"""
    assert site.run("-c", script, DJANGO_SETTINGS_MODULE="mysite.kept") == "True True\n"


def test_dsn() -> None:
    """The listening connection's own DSN is a setting, which the checks accept."""
    from django.test import override_settings

    from pgbackend.pubsub.settings import listen_dsn

    with override_settings(**DSN.settings()):
        assert listen_dsn() == "host=postgres.internal port=5432"
