"""The admin of stored notifications, as a browser uses it."""

import pytest

from tests.support.script import run_script
from tests.support.server import Server

SETUP = """
database = {**conf["DATABASES"]["default"], "NAME": "pgbackend_tests_admin"}
conf["DATABASES"] = {"default": database, "replica": {**database}}

class Replica:
    # Reads go to another alias; what is written is there at once, as seldom on a real replica.

    def db_for_read(self, model, **hints):
        return "replica"

    def db_for_write(self, model, **hints):
        return "default"

    def allow_relation(self, *objects, **hints):
        return True

conf["INSTALLED_APPS"] = [
    *conf["INSTALLED_APPS"],
    *["django.contrib.admin", "django.contrib.messages", "django.contrib.postgres"],
]
conf |= {
    "MIGRATION_MODULES": {**conf["MIGRATION_MODULES"], "admin": None},
    "MIDDLEWARE": [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    "TEMPLATES": [{
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {"context_processors": [
            "django.template.context_processors.request",
            "django.contrib.auth.context_processors.auth",
            "django.contrib.messages.context_processors.messages",
        ]},
    }],
    "ROOT_URLCONF": __name__,
    "ALLOWED_HOSTS": ["*"],
    "DATABASE_ROUTERS": [Replica()],
}
settings.configure(**conf)
import django
django.setup()
from django.contrib import admin
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connection, transaction
from django.test import Client
from django.test.utils import setup_test_environment
from django.urls import path
from django.utils import timezone
from pgbackend.pubsub import Notification, notify
from tests.pubsub.site.channels import Orders

setup_test_environment()
urlpatterns = [path("admin/", admin.site.urls)]
call_command("check", "admin", "pgpubsub")
call_command("migrate", run_syncdb=True, verbosity=0)
User.objects.create_superuser("root", password="secret")
client = Client()
assert client.login(username="root", password="secret")
PAGE = "/admin/pgpubsub/notification/"

def act(action, *rows):
    data = {"action": action, "_selected_action": [row.pk for row in rows]}
    answer = client.post(PAGE, data, follow=True)
    assert answer.status_code == 200
    print([str(each) for each in answer.context["messages"]])

rows = []
for n, state in enumerate(["ready", "delayed", "leased", "dead"]):
    notify(Orders, number=n, note="<b>" * (n == 3))
    row = Notification.objects.latest("pk")
    row.state = state
    row.attempts = n
    if state == "delayed":
        row.run_after = timezone.now() + timezone.timedelta(hours=1)
    if state == "leased":
        row.lease_until = timezone.now() + timezone.timedelta(hours=1)
    if state == "dead":
        row.last_error = "Traceback\\nZeroDivisionError: division by <zero>"
    row.save()
    rows.append(row)
ready, delayed, leased, dead = rows
"""


@pytest.mark.process
def test_admin(server: Server) -> None:
    """Rows are shown with state and error; retry, run now and discard do what they say."""
    server.all("DROP DATABASE IF EXISTS pgbackend_tests_admin WITH (FORCE)")
    server.all("CREATE DATABASE pgbackend_tests_admin")
    try:
        printed = run_script(
            SETUP
            + """
page = client.get(PAGE).content.decode()
assert "tests.pubsub.site.channels.Orders" in page
assert "ZeroDivisionError: division by &lt;zero&gt;" in page
assert client.get(PAGE + "?state=dead").context["cl"].result_count == 1
assert client.get(PAGE + "?q=division").context["cl"].result_count == 1
assert client.get(PAGE + "add/").status_code == 403
row = client.get(f"{PAGE}{dead.pk}/change/").content.decode()
assert "Traceback\\nZeroDivisionError" in row
assert "&quot;note&quot;: &quot;&lt;b&gt;&quot;" in row
assert client.post(f"{PAGE}{dead.pk}/delete/", {"post": "yes"}).status_code == 403

act("retry", *rows)
dead.refresh_from_db()
delayed.refresh_from_db()
leased.refresh_from_db()
print(dead.state, dead.attempts, delayed.state, delayed.run_after, leased.state)

delayed.state, delayed.run_after = "delayed", timezone.now() + timezone.timedelta(hours=1)
delayed.attempts = 1
delayed.save()
act("run_now", *rows)
delayed.refresh_from_db()
print(delayed.state, delayed.attempts, delayed.run_after)

act("discard", *rows)
print(list(Notification.objects.values_list("pk", flat=True)) == [leased.pk])
connection.close()
connection.close_pool()
"""
        )
    finally:
        server.all("DROP DATABASE pgbackend_tests_admin WITH (FORCE)")
    assert printed.splitlines() == [
        "System check identified no issues (0 silenced).",
        "['2 notifications are ready.']",
        "ready 0 ready None leased",
        "['1 notification is ready.']",
        "ready 1 None",
        "['3 notifications were discarded; 1 are left: a worker has them.']",
        "True",
    ]
