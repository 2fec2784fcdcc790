"""One request, its statements on the loop and in its threads."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from asgiref.sync import sync_to_async
from django.db import connection

from pgbackend import bridged
from pgbackend.requests.serving import serve
from tests.models import Author
from tests.support.limits import PATIENCE
from tests.support.wrapper import use_wrapper

REFUSED = "is not in force"


Ask = Callable[[], Any]


def execute(query: Any, params: Any = None) -> None:
    with connection.cursor() as cursor:
        cursor.execute(query, params)


def count() -> int:
    return Author.objects.count()


def count_by_cursor() -> Any:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM tests_author")
        return cursor.fetchone()[0]


def close() -> None:
    connection.close()


def in_thread(function: Callable[..., Any], *args: Any) -> Coroutine[Any, Any, Any]:
    return sync_to_async(function)(*args)


def on_loop(function: Callable[..., Any], *args: Any) -> Coroutine[Any, Any, Any]:
    return bridged(function)(*args)


def in_request(view: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Serve *view* as a request, on a loop of its own."""

    async def whole() -> None:
        try:
            await view()
        finally:
            await in_thread(close)

    async def main() -> None:
        async with asyncio.timeout(PATIENCE):
            await serve(whole)

    use_wrapper(options={"pool": {"max_size": 2}})
    with asyncio.Runner() as runner:
        runner.run(main())
