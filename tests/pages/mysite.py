"""The project `mysite` of the pages, in a folder and on a database of its own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.pages.examples import Example
from tests.support.fix_uvicorn import ROOT, TROUBLE, Site
from tests.support.limits import PATIENCE
from tests.support.server import Server


class MySite(Site):
    """A project in a folder, whose files are written from the pages."""

    def __init__(self, server: Server, name: str, folder: Path) -> None:
        super().__init__(server, name)
        self.folder = folder
        self.environ |= {
            "DJANGO_SETTINGS_MODULE": "mysite.settings",
            "PYTHONPATH": f"{folder}:{ROOT}",
            "PGAPPNAME": self.name,
        }

    def with_places(self, settings: Example) -> str:
        """Return the page's settings with this database in place of the page's."""
        info = self.conn.info
        places = {
            "NAME": info.dbname,
            "USER": info.user,
            "PASSWORD": info.password,
            "HOST": info.host,
            "PORT": str(info.port),
        }
        text = settings.text
        for name, value in places.items():
            text, count = re.subn(rf'("{name}": )"[^"]*"', rf"\g<1>{value!r}", text)
            assert count == 1, name
        return text

    def make(self, settings: str) -> None:
        """Make the project of the kitchen's pages: the example project's with these *settings*."""
        package = self.folder / "mysite"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "settings.py").write_text(f"from proj.settings import *\n{settings}")
        self.run("-m", "django", "migrate", "--verbosity=0")

    def tests(self, *command: str) -> str:
        """Run tests in the folder, warnings as errors, and return the output."""
        done = subprocess.run(
            [sys.executable, "-W", "error", *command],
            cwd=self.folder,
            # Of pytest's plugins only those that the command names.
            env={**self.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
        )
        assert done.returncode == 0, done.stdout
        assert not TROUBLE.search(done.stdout), done.stdout
        return done.stdout
