"""A PostgreSQL of a script's own, which is no test: storms restart it and stop it."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import psycopg

from proj import postgres


class OwnServer:
    """A server that a storm restarts, with the tables of the tests."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="pgbackend-storms-"))
        self.options = {"max_connections": 100, "fsync": "off"}
        self.server = postgres.start(self.folder, self.options)

    def set_up(self) -> None:
        """Set Django up for it, and make the tables."""
        server = self.server
        os.environ["PGBACKEND_TEST_DSN"] = server.url
        os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
        import django
        from django.core.management import call_command
        from django.db import connections

        with psycopg.connect(os.environ["PGBACKEND_TEST_DSN"], autocommit=True) as conn:
            conn.execute("CREATE DATABASE pgbackend_tests")
        django.setup()
        call_command("migrate", run_syncdb=True, verbosity=0)
        connections["default"].close()

    def restart(self) -> None:
        """Stop the server, which ends its connections, and start it again on its port."""
        postgres.stop(self.folder)
        self.server = postgres.start(self.folder, {**self.options, "port": self.server.port})

    def all(self, query: str) -> list[tuple[Any, ...]]:
        """Return the rows of a statement, by a connection of its own."""
        url = self.server.url
        with psycopg.connect(url, dbname="pgbackend_tests", autocommit=True) as conn:
            return conn.execute(query.encode()).fetchall()

    @property
    def postmaster(self) -> int:
        """The process id of the server."""
        return int((self.folder / "data" / "postmaster.pid").read_text().splitlines()[0])

    def close(self) -> None:
        """End the server, and remove its data."""
        postgres.stop(self.folder)
        shutil.rmtree(self.folder)
