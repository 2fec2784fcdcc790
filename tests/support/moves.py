"""Ways into a thread, and what functions do there."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.db import transaction

from tests.models import Author

Function = Callable[..., Any]


Move = Callable[..., Awaitable[Any]]


async def sensitive(function: Function, *args: Any) -> Any:
    return await sync_to_async(function)(*args)


async def insensitive(function: Function, *args: Any) -> Any:
    return await sync_to_async(function, thread_sensitive=False)(*args)


async def in_context(function: Function, *args: Any) -> Any:
    """As a request does: with a thread of the context's own."""
    async with ThreadSensitiveContext():
        return await sync_to_async(function)(*args)


MOVES = pytest.mark.parametrize("move", [sensitive, insensitive, asyncio.to_thread, in_context])


def create(name: str) -> int:
    Author.objects.create(name=name)
    return threading.get_ident()


def create_in_block(name: str) -> None:
    with transaction.atomic():
        Author.objects.create(name=name)
