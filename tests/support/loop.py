"""A look at what a loop does: the threads it starts, its pool, and a request to a handler."""

import asyncio
import sys
import threading
from types import FrameType, TracebackType
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from django.db import connection

from tests.support.limits import PATIENCE


def pool_size() -> int:
    """Return the most connections that the pool of the tests may have."""
    return int(settings.DATABASES["default"]["OPTIONS"]["pool"]["max_size"])


async def settled() -> dict[str, int]:
    """Return the pool's statistics once nothing is on loan or waited for; fail after PATIENCE."""
    async with asyncio.timeout(PATIENCE):
        while True:
            stats = connection.async_pool.get_stats()
            if stats["pool_available"] == stats["pool_size"] and not stats["requests_waiting"]:
                return dict(stats)
            await asyncio.sleep(0.01)


async def get(handler: ASGIHandler, address: str) -> tuple[int, bytes]:
    """Send a GET request, as an ASGI server would, and return the answer's status and body."""
    url = urlsplit(address)
    sent: list[dict[str, Any]] = []
    received = [{"type": "http.request", "body": b"", "more_body": False}]
    scope = {
        "type": "http",
        "method": "GET",
        "path": url.path,
        "query_string": url.query.encode(),
        "headers": [],
    }

    async def receive() -> dict[str, Any]:
        # The client stays.
        return received.pop() if received else await asyncio.get_running_loop().create_future()

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await handler(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


class ThreadStarts:
    """Counts the threads started while the block runs."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __enter__(self) -> "ThreadStarts":
        self._before = threading.getprofile()
        threading.setprofile(self._profile)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        threading.setprofile(self._before)

    def _profile(self, frame: FrameType, event: str, arg: Any) -> None:
        # Called for the first time when a new thread begins to run.
        sys.setprofile(None)
        self.names.append(threading.current_thread().name)
