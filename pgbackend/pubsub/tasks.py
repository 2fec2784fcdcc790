"""A backend for ``TASKS``, Django 6.0 and later: tasks are stored notifications.

``TASKS = {"default": {"BACKEND": "pgbackend.pubsub.tasks.TaskBackend"}}``. Each of ``QUEUES`` has a
channel, and the worker that handles channels runs the tasks. A task is enqueued in the caller's
transaction; what it writes is committed together with its result. With ``OPTIONS = {"lease":
seconds}`` tasks run outside of the transaction, for long ones: then a task may run twice.

https://docs.djangoproject.com/en/stable/topics/tasks/
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import sys
from contextlib import nullcontext, suppress
from dataclasses import dataclass, make_dataclass
from datetime import timedelta
from typing import Any, ClassVar
from uuid import uuid4

from django.core import checks
from django.db import router, transaction
from django.db.models.functions import Now
from django.tasks import Task, TaskContext, TaskResult, TaskResultStatus, task_backends
from django.tasks.backends.base import BaseTaskBackend
from django.tasks.exceptions import TaskResultDoesNotExist
from django.tasks.signals import task_enqueued, task_finished, task_started
from django.utils.json import normalize_json
from django.utils.module_loading import import_string

from .. import bridged, is_bridged
from .channels import Channel
from .encoding import check_json, storable
from .errors import NotificationsMissed, SlowConsumer
from .excerpts import error_text, excerpt
from .handling import is_failure
from .models import Notification, TaskRecord
from .registry import register
from .running import OnLoop, limited
from .scalars import AnyForm
from .sending import database, notify, send
from .task_records import RetriedTask as RetriedTask
from .task_records import TaskCancelled as TaskCancelled
from .task_records import key_of, result_of, task_of, task_or_stub, worker_id
from .waiting import discard

logger = logging.getLogger("pgbackend.pubsub")

# The options of TASKS that its channels take, as they are in `channels.Options`.
_CHANNEL_OPTIONS = ("lease", "concurrency", "wake", "keep_results")
# And those of the backend itself.
_OPTIONS = (*_CHANNEL_OPTIONS, "timeout")

# The longest wait before another attempt, seconds.
LONGEST_BACKOFF = 3600.0


@dataclass
class TaskFinished(Channel):
    """Sent when a task has its result."""

    result_id: str


class TaskChannel(Channel):
    """The base of the channels of queues."""

    lock_notifications = True
    # What fails here is not the task, but the connection or the server.
    retries = sys.maxsize
    unique_by = "key"
    queue: ClassVar[str]
    backend: ClassVar[str]
    # Seconds after which results are deleted; None: never.
    keep_results: ClassVar[float | None] = None

    @classmethod
    def prune(cls) -> None:
        """Delete old results of the backend."""
        if cls.keep_results is not None:
            prune_results(timedelta(seconds=cls.keep_results), cls.backend)


class TaskBackend(BaseTaskBackend):
    """Stores tasks as notifications, and their results in the table of `TaskRecord`."""

    task_class = RetriedTask
    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        # Without QUEUES any name is a queue, and all have one channel.
        self.channels = {
            queue: _make_channel(alias, queue, self.options) for queue in self.queues or {""}
        }

    def check(self, **kwargs: Any) -> list[checks.CheckMessage]:
        """Return an error for options that nothing takes."""
        unknown = sorted(set(self.options) - set(_OPTIONS))
        return [
            checks.Error(
                f"TASKS[{self.alias!r}]: nothing takes OPTIONS[{each!r}].",
                hint=f"The options are {', '.join(_OPTIONS)}.",
                id="pgpubsub.E007",
            )
            for each in unknown
        ]

    def enqueue(self, task: Task, args: Any, kwargs: Any) -> TaskResult:
        """Store the task in the transaction that is open; it is run when that is committed.

        Of a unique task that waits already return the result.
        """
        self.validate_task(task)
        record = TaskRecord(
            id=uuid4().hex,
            path=task.module_path,
            backend=self.alias,
            queue_name=task.queue_name,
            priority=task.priority,
            run_after=task.run_after,
            status=TaskResultStatus.READY,
            args=normalize_json(list(args)),
            kwargs=normalize_json(dict(kwargs)),
            enqueued_at=Now(),
            errors=[],
            worker_ids=[],
        )
        using = router.db_for_write(TaskRecord)
        check_json(using, task.module_path, json.dumps([record.args, record.kwargs]))
        key = key_of(record) if getattr(task, "unique", False) else None
        with transaction.atomic(using=using, savepoint=False):
            self._send(record, task.run_after, key)
            if key is not None:
                rows = Notification.objects.using(database(self._channel(record)))
                row = rows.get(pk=record.notification)
                record.id = row.payload["kwargs"]["result_id"]
                waiting = TaskRecord.objects.using(using).filter(pk=record.id).first()
                if waiting is not None:
                    return result_of(waiting, task)
                # It is that of this task, or somebody has deleted the record of one that waits.
            record.save(using=using, force_insert=True)
        result = result_of(record, task)
        task_enqueued.send(type(self), task_result=result)
        return result

    async def aenqueue(self, task: Task, args: Any, kwargs: Any) -> TaskResult:
        """Store the task in the transaction that is open."""
        return await bridged(self.enqueue)(task, args, kwargs)

    def get_result(self, result_id: str) -> TaskResult:
        """Return the result as it is now. Raise TaskResultDoesNotExist."""
        try:
            # Not from a replica, which may not have it yet: nobody is told a second time.
            using = router.db_for_write(TaskRecord)
            record = TaskRecord.objects.using(using).get(pk=result_id)
        except TaskRecord.DoesNotExist as error:
            raise TaskResultDoesNotExist(result_id) from error
        return result_of(record, task_of(record))

    async def aget_result(self, result_id: str) -> TaskResult:
        """Return the result as it is now. Raise TaskResultDoesNotExist."""
        return await bridged(self.get_result)(result_id)

    def run(self, record: TaskRecord) -> None:
        """Run the task of *record* and note what came of it."""
        using = router.db_for_write(TaskRecord)
        record.status = TaskResultStatus.RUNNING
        # By the clock of the server, which all workers share.
        record.started_at = record.started_at or Now()
        record.last_attempted_at = Now()
        record.worker_ids = [*record.worker_ids, worker_id()]
        record.save()
        try:
            task = task_of(record)
            result = result_of(record, task)
            task_started.send(type(self), task_result=result)
            first = [TaskContext(task_result=result)] if task.takes_context else []
            seconds = self.options.get("timeout") if is_bridged() else None
            limit = nullcontext() if seconds is None else limited(seconds)
            with limit, transaction.atomic(using=using):
                value = normalize_json(task.call(*first, *result.args, **result.kwargs))
                # What jsonb refuses, such as a NUL character, is the task's error: it would keep
                # its result from being stored.
                AnyForm().encode(value)
                check_json(using, task.module_path, json.dumps(value))
        except BaseException as error:
            # What ends the worker is no error of the task.
            if not is_failure(OnLoop(), error):
                raise
            self._note_error(record, error)
        else:
            record.status = TaskResultStatus.SUCCESSFUL
            record.return_value = value
            self._finish(record)

    def _note_error(self, record: TaskRecord, error: BaseException) -> None:
        kind, using = type(error), router.db_for_write(TaskRecord)
        record.errors = [
            *record.errors,
            {
                "exception_class_path": f"{kind.__module__}.{kind.__qualname__}",
                # jsonb takes neither NUL characters nor halves of surrogate pairs.
                "traceback": storable(using, error_text(error).replace("\0", "\\x00")),
            },
        ]
        try:
            task = task_of(record)
            attempts, backoff = task.max_attempts, task.backoff
        except (ImportError, ValueError, AttributeError):
            # The function is gone, or no task any longer.
            attempts, backoff = 1, 0.0
        tried = len(record.worker_ids)
        if tried >= attempts:
            record.status = TaskResultStatus.FAILED
            self._finish(record)
            return
        record.status = TaskResultStatus.READY
        seconds = min(backoff * 2 ** (tried - 1), LONGEST_BACKOFF) * random.uniform(0.75, 1.25)
        # By the clock of the server: that of this process may be another.
        self._send(record, timedelta(seconds=seconds))
        record.save()
        logger.warning(
            "task %s of %s failed, attempt %d of %d: tried again in %.1f s",
            record.id,
            record.path,
            tried,
            attempts,
            seconds,
            exc_info=excerpt(error),
        )

    def cancel(self, result: TaskResult) -> bool:
        """Do what the function `cancel` does."""
        using = router.db_for_write(TaskRecord)
        with transaction.atomic(using=using):
            waiting = TaskRecord.objects.using(using).select_for_update(skip_locked=True)
            record = waiting.filter(pk=result.id, status=TaskResultStatus.READY).first()
            if record is None or record.notification is None:
                return False
            if not discard(record.notification, using=database(self._channel(record))):
                return False
            name = f"{TaskCancelled.__module__}.{TaskCancelled.__qualname__}"
            record.errors = [*record.errors, {"exception_class_path": name, "traceback": ""}]
            record.status = TaskResultStatus.FAILED
            self._finish(record)
        return True

    def _finish(self, record: TaskRecord) -> None:
        record.finished_at = Now()
        record.save()
        notify(TaskFinished, result_id=record.id)
        task_finished.send(type(self), task_result=result_of(record, task_or_stub(record)))

    def _send(self, record: TaskRecord, run_after: Any, key: str | None = None) -> None:
        notification = self._channel(record)(result_id=record.id, key=key)
        record.notification = send(notification, priority=record.priority, run_after=run_after)

    def _channel(self, record: TaskRecord) -> type[Any]:
        return self.channels.get(record.queue_name) or next(iter(self.channels.values()))


def register_channels() -> None:
    """Make the backends of TASKS that are ours, so that their channels have listeners."""
    for alias in task_backends.settings:
        try:
            found = import_string(task_backends.settings[alias]["BACKEND"])
        except (ImportError, KeyError):
            # Whoever uses it is told.
            continue
        if issubclass(found, TaskBackend):
            task_backends[alias]


async def await_result(result: TaskResult, seconds: float | None = None) -> Any:
    """Wait until the task of *result* has finished, refresh *result*, and return what it returned.

    Raise ValueError, as its ``return_value`` does, if the task failed, and TimeoutError after
    so many *seconds*. Nothing is polled: the end of a task is heard. The task has to be committed.
    """
    async with asyncio.timeout(seconds):
        while True:
            # A stream may end, where thousands of tasks finish at once.
            with suppress(NotificationsMissed, SlowConsumer):
                async with TaskFinished.stream() as finished:
                    await result.arefresh()
                    if result.is_finished:
                        return result.return_value
                    async for each in finished:
                        if each.result_id == result.id:
                            break


def cancel(result: TaskResult) -> bool:
    """Take the task of *result* back if it waits, and refresh *result*; return whether it did.

    It has failed then, with the error `TaskCancelled`. A task that a worker has is not stopped.
    """
    found: bool = task_backends[result.backend].cancel(result)
    result.refresh()
    return found


acancel = bridged(cancel)


def prune_results(older_than: timedelta, backend: str | None = None) -> int:
    """Delete results, those of one alias of TASKS or all; see `TaskRecord.prune`."""
    return TaskRecord.prune(older_than, backend)


def _make_channel(alias: str, queue: str, options: dict[str, Any]) -> type[Any]:
    """Return the channel of a queue, which is found as ``pgbackend.pubsub.tasks.<name>``."""
    name = re.sub(r"\W", "_", f"Tasks_{alias}_{queue}" if queue else f"Tasks_{alias}")
    there = globals().get(name)
    if there is not None:
        return there  # type: ignore[no-any-return]  # made here before
    chosen = {option: options[option] for option in _CHANNEL_OPTIONS if option in options}
    made = make_dataclass(
        name,
        [("result_id", str), ("key", str | None, None)],
        bases=(TaskChannel,),
        namespace={"__module__": __name__, "queue": queue, "backend": alias, **chosen},
    )
    globals()[name] = made
    return register_channel(made)


def register_channel(channel: type[Any]) -> type[Any]:
    """Register what runs the tasks of *channel*, and return it."""
    register(channel, run_task)
    return channel


def run_task(result_id: str, key: str | None = None) -> None:
    """Run one task: the listener of the channels of queues."""
    record = TaskRecord.objects.select_for_update(of=("self",)).filter(pk=result_id)
    with transaction.atomic(using=record.db):
        found = record.first()
        if found is None or found.finished_at is not None:
            # Its result was deleted, or the lease of whoever has finished it had ended before.
            return
    task_backends[found.backend].run(found)
