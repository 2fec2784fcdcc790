"""django-tasks-db: its worker, which polls; one task after the other."""

from typing import Any, ClassVar

import django
from django.core.management import call_command
from django.db import connection
from django.tasks import task

from tests.benchmarks_pubsub.peer import CHUNK
from tests.benchmarks_pubsub.peer import Peer as Base
from tests.benchmarks_pubsub.record import Record, now

django.setup()

from django_tasks_db.management.commands.db_worker import Worker  # noqa: E402
from django_tasks_db.models import DBTaskResult, get_date_max  # noqa: E402

# How often its worker looks where there is nothing, seconds; its default is 1.
INTERVAL = 0.1

_record: list[Record] = []


@task
def handle(sent: int) -> None:
    _record[0].note(sent)


class Peer(Base):
    tables: ClassVar[tuple[str, ...]] = (DBTaskResult._meta.db_table,)
    kinds: ClassVar[tuple[str, ...]] = ("stored",)
    # It never notifies.
    wakes: ClassVar[tuple[str, ...]] = ("poll",)

    def __init__(self, dsn: str, record: Record, **options: Any) -> None:
        super().__init__(dsn, record, **options)
        _record[:] = [record]

    def prepare(self) -> None:
        call_command("migrate", verbosity=0)

    def open(self, connections: int = 2) -> None:
        connection.ensure_connection()

    def _work(self, *, batch: bool) -> None:
        Worker(
            queue_names=["default"],
            interval=INTERVAL,
            batch=batch,
            backend_name="default",
            startup_delay=False,
            max_tasks=None,
            worker_id="bench",
            excluded_queue_names=[],
        ).run()

    def listen(self, kind: str) -> None:
        self._work(batch=False)

    def send(self, kind: str, wake: str = "poll") -> None:
        handle.enqueue(sent=now())

    def fill(self, rows: int) -> None:
        # It has no call for many.
        for begin in range(0, rows, CHUNK):
            DBTaskResult.objects.bulk_create(
                DBTaskResult(
                    args_kwargs={"args": [], "kwargs": {"sent": 0}},
                    task_path=handle.module_path,
                    backend_name="default",
                    run_after=get_date_max(),
                )
                for _ in range(min(CHUNK, rows - begin))
            )

    def drain(self) -> None:
        self._work(batch=True)
