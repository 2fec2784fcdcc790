"""Stock Django's synchronous ORM in gevent's greenlets, with django-db-geventpool."""

# ruff: noqa: E402
from gevent import monkey

monkey.patch_all()

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gevent

from tests.benchmarks.load import Window
from tests.benchmarks.peer import ITEM
from tests.benchmarks.peer_django import set_up
from tests.benchmarks.peer_django_sync import SyncOperations

if TYPE_CHECKING:
    from tests.benchmarks.worker import Turns


class Peer(SyncOperations):
    """A greenlet for each request."""

    def __init__(self, dsn: str, pool: int) -> None:
        set_up(
            dsn,
            "django_db_geventpool.backends.postgresql_psycopg3",
            {"MAX_CONNS": pool, "REUSE_CONNS": pool},
        )
        self.load_models()

    def request(self, operation: Callable[..., Any], spec: Any) -> None:
        from django.db import close_old_connections

        try:
            super().request(operation, spec)
        finally:
            # By the signal request_finished.
            close_old_connections()

    def slow(self, count: int) -> None:
        from django_db_geventpool.utils import close_connection

        @close_connection
        def get() -> None:
            self.models.Slow20.objects.get(pk=1)

        for each in [gevent.spawn(get) for _ in range(count)]:
            each.get()

    def wait(self) -> None:
        self.models.Slow100.objects.get(pk=1)

    def run(self, spec: Any, turns: "Turns") -> None:
        operation = getattr(self, spec["operation"])
        gevent.spawn(self.request, self.get, {"repeat": 5, "arguments": ITEM}).get()
        for turn in turns:
            turns.answer(self._turn(operation, spec, turn))

    def _turn(self, operation: Callable[..., Any], spec: Any, turn: dict[str, float]) -> Window:
        window = Window()
        burst = spec["kind"] == "burst"

        def client() -> None:
            while True:
                began = time.perf_counter()
                try:
                    gevent.spawn(self.request, operation, spec).get()
                except Exception as error:
                    window.failed(error)
                else:
                    window.latencies.append(time.perf_counter() - began)
                if burst or window.ended:
                    return

        if burst:
            window.open()
        clients = [gevent.spawn(client) for _ in range(spec["clients"])]
        if not burst:
            gevent.sleep(turn["warm_up"])
            window.open()
            gevent.sleep(turn["seconds"])
            while not window.is_enough(spec["clients"], turn["seconds"]):
                gevent.sleep(turn["seconds"] / 10)
            window.close()
        for each in clients:
            each.get()
        if burst:
            window.close()
        return window
