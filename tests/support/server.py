"""The server of the tests, and a look at it from outside."""

import time
from typing import Any

import psycopg
import pytest

from tests.support.limits import PATIENCE

DATABASES = ("pgbackend_tests", "pgbackend_tests_other")

# The application_name in tests.settings.
NAME = "pgbackend-tests"


class Server:
    """A look at the server from outside: a connection that is none of the backend's."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.conn = psycopg.connect(dsn, autocommit=True, dbname=DATABASES[0])
        self.other = psycopg.connect(dsn, autocommit=True, dbname=DATABASES[1])

    def all(self, query: str, *params: Any) -> list[Any]:
        """Return all rows of a query, none for a statement without rows."""
        cursor = self.conn.execute(query.encode(), params or None)
        return cursor.fetchall() if cursor.description else []

    def one(self, query: str, *params: Any) -> Any:
        """Return the first column of a query's first row."""
        return self.all(query, *params)[0][0]

    def backends(self) -> int:
        """Return how many backends of ours there are."""
        return int(
            self.one(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s",
                NAME,
            )
        )

    def wait_for_end(self, pid: int) -> None:
        """Wait until a backend has ended, and let go of its locks; fail after PATIENCE."""
        if not self.one("SELECT pg_terminate_backend(%s, %s)", pid, int(PATIENCE * 1000)):
            assert not self.all("SELECT pid FROM pg_stat_activity WHERE pid = %s", pid)

    def wait_for_backends(self, count: int) -> None:
        """Wait until the server has *count* backends of ours; fail after PATIENCE.

        A closed socket's backend takes a moment to notice.
        """
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if self.backends() == count:
                return
            self.all("SELECT pg_sleep(0.002)")
        left = self.all(
            "SELECT pid, state, query FROM pg_stat_activity WHERE application_name = %s", NAME
        )
        if not count:
            # So that the tests after this one do not find them, too.
            self.all(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = %s",
                NAME,
            )
        pytest.fail(f"{len(left)} backends of ours, not {count}: {left}")
