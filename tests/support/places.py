"""Where something ran: on the event loop's thread, or on one of its own."""

from __future__ import annotations

import threading
from typing import Any

from tests.support.server import DATABASES, Server

# Where something ran, by the name of what it was.
ran: dict[str, list[threading.Thread]] = {}


def note(name: str) -> None:
    ran.setdefault(name, []).append(threading.current_thread())


def in_a_thread(name: str) -> bool:
    """Return whether what noted *name* ran, and always outside the event loop's thread."""
    return name in ran and threading.main_thread() not in ran[name]


def connections_elsewhere(server: Server) -> Any:
    """Return how many connections there are to the second database, ours from outside aside."""
    return server.one(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND pid <> %s",
        DATABASES[1],
        server.other.info.backend_pid,
    )
