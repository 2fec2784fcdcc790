"""The command ``runserver``: ASGI with reload and static files, in a new project."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.contrib.staticfiles.management.commands.runserver import Command as StaticRunserver
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand
from django.core.management.commands.runserver import Command as DjangoRunserver
from django.test import override_settings

from pgbackend.asgi import LifespanApplication
from pgbackend.management.commands import runserver
from tests.support.fix_uvicorn import Process
from tests.support.limits import PATIENCE
from tests.support.script import run_script
from tests.support.server import Server
from tests.support.startproject import Project

VIEWS = """
from django.contrib.auth.models import Group
from django.contrib import admin
from django.db import connection, transaction
from django.http import JsonResponse
from django.urls import path

from pgbackend import is_bridged


async def answer(request):
    async with transaction.atomic():
        await Group.objects.acreate(name="marines")
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM auth_group")
            (count,) = cursor.fetchone()
        await Group.objects.all().adelete()
    return JsonResponse({"bridged": is_bridged(), "count": count, "version": 1})


urlpatterns = [path("admin/", admin.site.urls), path("", answer)]
"""


@pytest.fixture(scope="module")
def project(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A new project with a view."""
    project = Project(server, "runserver", tmp_path_factory.mktemp("runserver"))
    try:
        project.make()
        (project.folder / "mysite" / "urls.py").write_text(VIEWS)
        project.manage("migrate", "--verbosity=0")
        yield project
    finally:
        project.close()


def serve(project: Project, *arguments: str) -> Process:
    manage = str(project.folder / "manage.py")
    return project.serve(manage, "runserver", *arguments, "127.0.0.1:0")


def get(process: Process, path: str = "/") -> httpx.Response:
    return httpx.get(f"{process.url}{path}", timeout=PATIENCE)


@pytest.mark.process
def test_runserver(project: Project) -> None:
    """It serves asynchronous views in a bridge, the admin's CSS, and each file that is changed."""
    process = serve(project)
    assert get(process).json() == {"bridged": True, "count": 1, "version": 1}
    assert "css" in get(process, "/static/admin/css/base.css").headers["content-type"]
    assert "It is uvicorn" in process.output
    urls = project.folder / "mysite" / "urls.py"
    changed = VIEWS.replace('"version": 1', '"version": 2')
    process.wait_until_served_again(lambda: urls.write_text(changed))
    assert get(process).json()["version"] == 2
    # The first process has closed its pools.
    project.wait_for(lambda: project.count_backends() == 1)
    assert process.trouble() == [], process.output
    assert process.interrupt() == 0
    project.wait_for(lambda: project.count_backends() == 0)


@pytest.mark.process
def test_noasgi(project: Project) -> None:
    """With --noasgi it is Django's own command, which says what is not there."""
    process = serve(project, "--noreload", "--noasgi")
    project.wait_for(lambda: "are not bridged" in process.output)
    assert get(process, "/static/admin/css/base.css").status_code == 200
    assert get(process).status_code == 500
    process.kill()


TWICE = """
    import os
    import signal
    import django
    settings.configure(**conf)
    django.setup()
    from pgbackend.management.commands.runserver import UvicornServer

    started = threading.Event()

    async def application(scope, receive, send):
        assert scope["type"] == "lifespan"
        await receive()
        await send({"type": "lifespan.startup.complete"})
        started.set()
        await receive()
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(30)

    server = UvicornServer(("127.0.0.1", 0), None)
    server.set_app(application)
    # As under the reloader, whose main thread ends by Ctrl-C.
    threading.Thread(target=server.serve_forever, daemon=True).start()
    started.wait()
    print("started", flush=True)
"""


@pytest.mark.process
def test_ctrl_c_twice() -> None:
    """A second Ctrl-C ends it at once, without a traceback, while it still waits for the first."""
    assert run_script(TWICE) == "started\n"


def below(*names: str) -> type[BaseCommand]:
    """Return the next command where *names* are installed below "pgbackend"."""
    with override_settings(INSTALLED_APPS=["pgbackend", *names]):
        return runserver.find_next()


def test_next() -> None:
    """The next command is that of the application below that has one, or Django's."""
    assert below("django.contrib.auth") is DjangoRunserver
    assert below("django.contrib.staticfiles") is StaticRunserver


def test_application_with_a_server_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command of an application that starts another server, as daphne does, is left to it."""
    commands = tmp_path / "with_server" / "management" / "commands"
    commands.mkdir(parents=True)
    for folder in (commands, commands.parent, commands.parent.parent):
        (folder / "__init__.py").touch()
    (commands / "runserver.py").write_text(
        "from django.core.management.commands import runserver\n"
        "class Command(runserver.Command):\n"
        "    def inner_run(self, *args, **options): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    own = below("with_server", "django.contrib.staticfiles")
    assert own.__module__ == "with_server.management.commands.runserver"
    assert runserver.has_own_server(own)
    assert not runserver.has_own_server(StaticRunserver)


def test_without_uvicorn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without uvicorn the command is Django's, and says what to install."""
    monkeypatch.setattr(runserver, "find_spec", lambda name: None)
    printed = io.StringIO()
    command: Any = runserver.Command(stdout=printed, no_color=True)
    command.addr, command.port, command._raw_ipv6 = "127.0.0.1", "8000", False
    command.on_bind(8000)
    assert "This server is WSGI" in printed.getvalue()
    assert "pip install uvicorn" in printed.getvalue()
    assert not command.serves_asgi()


def test_application_of_the_settings() -> None:
    """ASGI_APPLICATION is served, with pools that are open from start-up to shutdown."""
    command: Any = runserver.Command()
    command.server_cls = runserver.UvicornServer
    for path in ("proj.asgi.application", None):
        with override_settings(ASGI_APPLICATION=path):
            assert isinstance(command.get_handler(), LifespanApplication)
    with (
        override_settings(ASGI_APPLICATION="proj.asgi.missing"),
        pytest.raises(ImproperlyConfigured, match=r"ASGI_APPLICATION 'proj\.asgi\.missing'"),
    ):
        command.get_handler()
