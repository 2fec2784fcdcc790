"""The tutorial's first project, made of its page: files, commands, requests and tests."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.pages.examples import ROOT, blocks_of, example
from tests.pages.mysite import MySite
from tests.support.server import Server

pytestmark = pytest.mark.process

PAGE = "docs/tutorial/first-project.md"
APPS = example(PAGE, "INSTALLED_APPS")
DATABASES = example(PAGE, "DATABASES")
MODELS = example(PAGE, "models.Model")
VIEWS = example(PAGE, "def place_order")
URLS = example(PAGE, "urlpatterns")
RUNNER = example(PAGE, "TEST_RUNNER")
TESTS = example(PAGE, "class OrderTests")

# Several commands in one process, which saves the start of the others.
MANAGE = """
import json, os, sys
from django.core.management import execute_from_command_line
folder, commands = json.loads(sys.argv[1])
os.chdir(folder)
for command in commands:
    if command[0] == "cd":
        os.chdir(command[1])
    else:
        execute_from_command_line(command[1:] if command[0] == "python" else command)
"""


def console() -> list[tuple[list[str], str]]:
    """Return the commands of the page, in their order, each with the output that it shows."""
    text = "".join(block.text for block in blocks_of(ROOT / PAGE, "console"))
    found = re.findall(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", text, re.MULTILINE)
    return [(shlex.split(command.replace("\\\n", "")), output) for command, output in found]


@pytest.fixture
def site(server: Server, tmp_path: Path) -> Iterator[MySite]:
    # The folder that startproject makes.
    site = MySite(server, "first_project", tmp_path / "mysite")
    yield site
    site.close()


def run_commands(site: MySite, folder: Path, commands: list[list[str]], **environ: str) -> str:
    """Run commands of the page in a folder and return what they print."""
    return site.run("-c", MANAGE, json.dumps([str(folder), commands]), **environ)


def test_first_project(site: MySite, tmp_path: Path) -> None:
    """What the page writes is served, answers as the page shows, and passes its test."""
    commands = console()
    served = ("pip", "uvicorn", "curl")
    django = [words for words, _ in commands if words[0] not in served]
    start, rest = django[:3], django[3:]
    assert rest.pop() == ["python", "manage.py", "test"]
    serve = rest.pop()
    assert serve == ["python", "manage.py", "runserver"]

    # There are no settings yet.
    run_commands(site, tmp_path, start, DJANGO_SETTINGS_MODULE="")
    package, shop = site.folder / "mysite", site.folder / "shop"
    settings = package / "settings.py"
    text = settings.read_text()
    for name, replaced, closing in (
        ("INSTALLED_APPS", APPS.text, r"\]"),
        ("DATABASES", site.with_places(DATABASES), r"\}"),
    ):
        text, count = re.subn(
            rf"(?s)(?<=\n){name} = .*?\n{closing}\n", lambda _, by=replaced: by, text
        )
        assert count == 1
    settings.write_text(text + RUNNER.text)
    MODELS.write(shop / "models.py")
    VIEWS.write(shop / "views.py")
    URLS.write(package / "urls.py")
    TESTS.write(shop / "tests.py")

    output = run_commands(site, site.folder, rest)
    assert "System check identified no issues (0 silenced).\n" in output
    manage = str(site.folder / "manage.py")
    process = site.serve(manage, *serve[2:], "--noreload", "127.0.0.1:0")
    css = httpx.get(f"{process.url}/static/admin/css/base.css")
    assert css.status_code == 200
    assert "It is uvicorn" in process.output
    requests = [(words, output) for words, output in commands if words[0] == "curl"]
    assert len(requests) == 2
    for words, shown in requests:
        method = words[2] if words[1] == "-X" else "GET"
        address = words[-1].replace("http://127.0.0.1:8000", process.url)
        assert httpx.request(method, address).text == shown.rstrip("\n")
    process.terminate()
    assert process.trouble() == [], process.output
    assert "\nOK\n" in site.tests("manage.py", "test")
