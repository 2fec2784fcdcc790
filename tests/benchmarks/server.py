"""The PostgreSQL of a run: the one that --dsn names, or one that lives as long as the run."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from proj import postgres
from tests.benchmarks import schema
from tests.django_suite.server import system_postgres

DATABASE = "pgbackend_benchmarks"

# The clients are what is measured: nothing waits for a disk, and no vacuum comes in between.
# Stock Django without a pool has a connection for each of a thousand requests, and the pools of all
# others stand by.
OPTIONS: dict[str, str | int] = {
    "max_connections": 2000,
    "shared_buffers": "512MB",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_wal_size": "4GB",
    "autovacuum": "off",
}


@contextmanager
def serve(dsn: str | None) -> Iterator[str]:
    """Yield the URL of a database with the tables of `schema`, made anew."""
    with superuser(dsn) as url:
        yield _prepare(url)


@contextmanager
def superuser(dsn: str | None) -> Iterator[str]:
    """Yield the URL of a superuser: *dsn*, or that of a server that lives as long as the block."""
    if dsn:
        yield dsn
        return
    with tempfile.TemporaryDirectory(prefix="pgbackend-bench-") as folder:
        server = postgres.start(Path(folder), OPTIONS, system_postgres())
        try:
            yield server.url
        finally:
            postgres.stop(Path(folder))


def make_database(dsn: str, name: str) -> str:
    """Make the database *name* anew, and return its URL."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())
        conn.execute(f"CREATE DATABASE {name}".encode())
    return urlsplit(dsn)._replace(path=f"/{name}", query="").geturl()


def _prepare(dsn: str) -> str:
    url = make_database(dsn, DATABASE)
    with psycopg.connect(url, autocommit=True) as conn:
        for statement in schema.statements():
            conn.execute(statement.encode())
    return url


class Look:
    """A look at the server from outside."""

    def __init__(self, dsn: str) -> None:
        self._conn = psycopg.connect(dsn, autocommit=True, application_name="bench-look")

    def close(self) -> None:
        self._conn.close()

    def clean_up(self) -> None:
        for statement in schema.clean_up():
            self._conn.execute(statement.encode())

    def connections(self, name: str) -> int:
        """Return how many there are of an application_name."""
        row = self._conn.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s", [name]
        ).fetchone()
        assert row is not None
        return int(row[0])

    def version(self) -> str:
        row = self._conn.execute("SHOW server_version").fetchone()
        assert row is not None
        return str(row[0])
