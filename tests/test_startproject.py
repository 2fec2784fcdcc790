"""A new project, as `startproject` makes it, with what the README changes."""

from __future__ import annotations

import asyncio
import signal
import textwrap
from collections.abc import Iterator

import httpx
import pytest

from tests.site.admin import PASSWORD, USER, work_in_the_admin
from tests.support.limits import PATIENCE
from tests.support.server import Server
from tests.support.startproject import Project

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def project(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    """A new project with a migrated database and a superuser."""
    project = Project(server, "startproject", tmp_path_factory.mktemp("startproject"))
    try:
        project.make()
        project.manage("migrate")
        project.manage(
            *("createsuperuser", "--noinput", f"--username={USER}", "--email=root@example.com"),
            DJANGO_SUPERUSER_PASSWORD=PASSWORD,
        )
        yield project
    finally:
        project.close()


@pytest.fixture
def emptied(project: Project) -> None:
    """Nobody has worked in the admin yet."""
    project.all("TRUNCATE auth_group, django_session, django_admin_log CASCADE")


def test_check(project: Project) -> None:
    """`manage.py check` finds nothing to complain about."""
    expected = "System check identified no issues (0 silenced).\n"
    assert project.manage("check") == expected
    assert project.manage("check", "--database=default") == expected


def test_migrations(project: Project) -> None:
    """All migrations are applied, and models need no others."""
    assert "[ ]" not in project.manage("showmigrations")
    assert project.manage("makemigrations", "--check") == "No changes detected\n"


@pytest.fixture
def on_loop(project: Project) -> Iterator[None]:
    """PGBACKEND_SYNC_ON_LOOP = True in the project's settings."""
    text = project.settings.read_text()
    project.settings.write_text(f"{text}\nPGBACKEND_SYNC_ON_LOOP = True\n")
    yield
    project.settings.write_text(text)


def check_admin(project: Project) -> None:
    """Work in the admin of the project served by uvicorn, and look what that leaves."""

    async def work() -> None:
        async with httpx.AsyncClient(base_url=process.url, timeout=PATIENCE) as client:
            await work_in_the_admin(client)

    process = project.serve("-m", "uvicorn", "mysite.asgi:application", "--port=0")
    asyncio.run(work())
    assert project.all("SELECT name FROM auth_group") == [("marines",)]
    actions = project.all("SELECT action_flag FROM django_admin_log ORDER BY id")
    assert actions == [(1,), (2,)]
    project.wait_for(lambda: project.count_backends("state <> 'idle'") == 0)
    assert process.terminate() in (0, -signal.SIGTERM), process.output
    assert process.trouble() == [], process.output
    project.wait_for(lambda: project.count_backends() == 0)


@pytest.mark.usefixtures("emptied")
def test_admin_in_threads(project: Project) -> None:
    """uvicorn serves the admin: logging in, listing, editing, logging out."""
    check_admin(project)


@pytest.mark.usefixtures("emptied", "on_loop")
def test_admin_on_the_loop(project: Project) -> None:
    """PGBACKEND_SYNC_ON_LOOP = True: uvicorn serves the admin as it does without."""
    check_admin(project)


@pytest.mark.usefixtures("emptied", "on_loop")
def test_admin_on_the_loop_starts_no_thread(project: Project) -> None:
    """PGBACKEND_SYNC_ON_LOOP = True: the admin's requests start no thread, detector aside."""
    source = """
        import asyncio
        import sys
        import threading

        import httpx
        from mysite.asgi import application
        from tests.site.admin import work_in_the_admin

        started = []

        def note(frame, event, arg):
            # Called for the first time when a new thread begins to run.
            sys.setprofile(None)
            started.append(threading.current_thread().name)

        async def main():
            transport, url = httpx.ASGITransport(application), "http://localhost"
            async with httpx.AsyncClient(transport=transport, base_url=url) as client:
                await work_in_the_admin(client)

        threading.setprofile(note)
        asyncio.run(main())
        print(*started)
    """
    assert project.run("-c", textwrap.dedent(source)) == "pgbackend-detector\n"
