"""Tasks, for Django 6.0 and later."""

import asyncio
from typing import Any

import django
from django.tasks import TaskContext, task

from .models import Author

if django.VERSION >= (6, 1):
    retried = task(backend="pubsub", max_attempts=3, backoff=0.01)
    unique = task(backend="pubsub", unique=True)
else:
    retried = unique = task(backend="pubsub")


@task(backend="pubsub")
def add(first: int, second: int) -> int:
    return first + second


@task(backend="pubsub")
async def add_async(first: int, second: int) -> int:
    await Author.objects.acreate(name="async")
    return first + second


@task(backend="pubsub", queue_name="slow", takes_context=True)
def attempt_of(context: TaskContext, name: str) -> list[Any]:
    return [context.attempt, name]


@retried
def fail(name: str) -> None:
    Author.objects.create(name=name)
    raise ZeroDivisionError("on purpose")


@unique
def index(name: str, more: int = 0) -> str:
    return name


@task(backend="leased")
def long(name: str) -> str:
    Author.objects.create(name=name)
    return name


@task(backend="brief")
async def brief(seconds: float) -> str:
    await Author.objects.acreate(name="brief")
    await asyncio.sleep(seconds)
    return "done"


@task(backend="pubsub")
def gone() -> None: ...


@task(backend="pubsub")
def fail_with(text: str) -> None:
    raise ValueError(eval(text))


@task(backend="pubsub")
def give(text: str) -> Any:
    return eval(text)


@task(backend="pubsub")
async def give_up(kind: str) -> None:
    match kind:
        case "cancelled":
            raise asyncio.CancelledError
        case "exit":
            raise SystemExit
        case _:
            raise GeneratorExit
