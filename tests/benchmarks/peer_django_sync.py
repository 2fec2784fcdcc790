"""Stock Django's synchronous ORM in one thread, with a connection that is kept.

It serves one request at a time, however many clients are asked for: its requests per second
compare with nothing here, its CPU time per query is what Django's own code costs.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.benchmarks import values
from tests.benchmarks.load import Window
from tests.benchmarks.peer_django import set_up

if TYPE_CHECKING:
    from tests.benchmarks.worker import Turns


class SyncOperations:
    """What an application writes with Django's synchronous methods."""

    tables: dict[str, Any]
    models: Any

    def load_models(self) -> None:
        from tests.benchmarks import models

        self.models = models
        self.tables = models.TABLES

    def request(self, operation: Callable[..., Any], spec: Any) -> None:
        for _ in range(spec["repeat"]):
            operation(**spec["arguments"])

    def get(self, table: str) -> None:
        self.tables[table].objects.get(pk=values.key())

    def rows(self, table: str, rows: int = values.ROWS) -> None:
        queryset = self.tables[table].objects.filter(pk__gte=values.start(rows))
        assert len(queryset.order_by("pk")[:rows]) == rows

    def update(self, table: str) -> None:
        from django.db import transaction

        with transaction.atomic():
            row = self.tables[table].objects.select_for_update().get(pk=values.key())
            row.name = values.new_name()
            row.save()

    def create(self, table: str) -> None:
        self.tables[table].objects.create(**values.new_row(table))

    def bulk_create(self, table: str) -> None:
        model = self.tables[table]
        model.objects.bulk_create([model(**values.new_row(table)) for _ in range(values.BULK)])

    def update_or_create(self, table: str) -> None:
        self.tables[table].objects.update_or_create(
            pk=values.key(), defaults={"name": values.new_name()}
        )

    def prefetch(self, table: str) -> None:
        first = values.some_author()
        names = ("books__chapters",) if table == "item" else ("widebooks__notes",)
        authors = self.models.Author.objects.filter(
            pk__range=(first, first + values.PREFETCHED - 1)
        )
        assert len(authors.prefetch_related(*names)) == values.PREFETCHED

    def aggregate(self, table: str) -> None:
        from django.db.models import Count, Max, Min

        first = values.start(values.AGGREGATED)
        queryset = self.tables[table].objects.filter(
            pk__range=(first, first + values.AGGREGATED - 1)
        )
        result = queryset.aggregate(Count("pk"), Min("pk"), Max("name"))
        assert result["pk__count"] == values.AGGREGATED

    def iterate(self, table: str) -> None:
        for _ in self.tables[table].objects.iterator(chunk_size=2000):
            pass

    def savepoints(self) -> None:
        from django.db import transaction

        with transaction.atomic():
            for _ in range(5):
                with transaction.atomic():
                    self.get("item")


class Peer(SyncOperations):
    """One thread, one request after the other."""

    def __init__(self, dsn: str, pool: int) -> None:
        set_up(dsn, "django.db.backends.postgresql", {}, max_age=None)
        self.load_models()

    def run(self, spec: Any, turns: "Turns") -> None:
        operation = getattr(self, spec["operation"])
        for _ in range(5):
            self.get("item")
        for turn in turns:
            window = Window()
            burst = spec["kind"] == "burst"
            if not burst:
                self._repeat(operation, spec, window, turn["warm_up"])
            window.open()
            self._repeat(operation, spec, window, 0 if burst else turn["seconds"])
            window.close()
            turns.answer(window)

    def _repeat(
        self, operation: Callable[..., Any], spec: Any, window: Window, seconds: float
    ) -> None:
        """Send requests until so many seconds have passed, one at least."""
        end = time.perf_counter() + seconds
        while True:
            began = time.perf_counter()
            self.request(operation, spec)
            window.latencies.append(time.perf_counter() - began)
            if time.perf_counter() >= end:
                return
