"""Django's tasks and results from the rows of `TaskRecord`."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from dataclasses import dataclass
from typing import Any

from django.tasks import Task, TaskResult, TaskResultStatus
from django.tasks.base import TaskError
from django.utils.module_loading import import_string

from .models import TaskRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class RetriedTask(Task):
    """A task that is tried *max_attempts* times.

    *backoff* is the number of seconds until the second attempt; each further one waits twice as
    long, with jitter. Of a *unique* task one waits with the same arguments: `enqueue` returns that
    one's result. Since Django 6.1 ``@task(max_attempts=5)`` sets them.
    """

    max_attempts: int = 1
    backoff: float = 1.0
    unique: bool = False


class TaskCancelled(Exception):
    """The error in the result of a task that was taken back by `cancel`."""


def worker_id() -> str:
    """Return the name of this process in results: that of the host, and its number."""
    return f"{socket.gethostname()}-{os.getpid()}"


def key_of(record: TaskRecord) -> str:
    """Return what is the same for tasks of one function with the same arguments."""
    found = json.dumps([record.path, record.args, record.kwargs], sort_keys=True)
    return hashlib.sha256(found.encode()).hexdigest()


def task_of(record: TaskRecord) -> Any:
    """Return the task as it was enqueued. Raise ValueError if there is no such task any longer."""
    found = import_string(record.path)
    if not isinstance(found, Task):
        raise ValueError(f"{record.path} is no task")
    return found.using(
        priority=record.priority,
        queue_name=record.queue_name,
        run_after=record.run_after,
        backend=record.backend,
    )


def task_or_stub(record: TaskRecord) -> Any:
    try:
        return task_of(record)
    except (ImportError, ValueError, AttributeError):
        return RetriedTask(
            func=_gone,
            priority=record.priority,
            backend=record.backend,
            queue_name=record.queue_name,
            run_after=record.run_after,
        )


def _gone() -> None:
    """Stand for a task whose function is no longer there."""


def result_of(record: TaskRecord, task: Task) -> TaskResult:
    result = TaskResult(
        task=task,
        id=record.id,
        status=TaskResultStatus(record.status),
        enqueued_at=record.enqueued_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
        last_attempted_at=record.last_attempted_at,
        args=record.args,
        kwargs=record.kwargs,
        backend=record.backend,
        errors=[TaskError(**each) for each in record.errors],
        worker_ids=list(record.worker_ids),
    )
    object.__setattr__(result, "_return_value", record.return_value)
    return result
