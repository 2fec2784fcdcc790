"""A project as `startproject` makes it, with what the README changes."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.fix_uvicorn import ROOT, Site
from tests.support.server import Server


class Project(Site):
    """A project in a folder, on a database of its own."""

    def __init__(self, server: Server, name: str, folder: Path) -> None:
        super().__init__(server, name)
        self.folder = folder
        self.settings = folder / "mysite" / "settings.py"
        self.environ |= {
            "DJANGO_SETTINGS_MODULE": "mysite.settings",
            "PYTHONPATH": f"{folder}:{ROOT}",
            "PGAPPNAME": self.name,
        }

    def make(self) -> None:
        """Make the project, and give it the application "pgbackend" and its database."""
        self.run("-m", "django", "startproject", "mysite", str(self.folder))
        info = self.conn.info
        database = {
            "ENGINE": "pgbackend",
            "NAME": info.dbname,
            "USER": info.user,
            "PASSWORD": info.password,
            "HOST": info.host,
            "PORT": str(info.port),
        }
        text, count = re.subn(
            r"""(?s)(?<=\nDATABASES = )\{.*?\n\}""",
            lambda _: repr({"default": database}),
            self.settings.read_text(),
        )
        assert count == 1
        text = text.replace("INSTALLED_APPS = [", 'INSTALLED_APPS = [\n    "pgbackend",')
        self.settings.write_text(text)

    def manage(self, *arguments: str, **environ: str) -> str:
        """Run manage.py and return what it prints."""
        return self.run(str(self.folder / "manage.py"), *arguments, **environ)
