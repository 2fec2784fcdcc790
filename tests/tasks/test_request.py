"""What belongs to one request is not another one's."""

import asyncio

import pytest
from django.db import ProgrammingError

from pgbackend.requests.serving import serve
from pgbackend.transaction import detached
from tests.models import Author
from tests.support.limits import PATIENCE
from tests.support.one_request import (
    REFUSED,
    Ask,
    close,
    count,
    count_by_cursor,
    execute,
    in_request,
    in_thread,
    on_loop,
)
from tests.support.server import Server
from tests.support.wrapper import use_wrapper


@pytest.mark.parametrize("ask", [count, count_by_cursor], ids=lambda f: f.__name__)
def test_task_started_before(ask: Ask, server: Server) -> None:
    """A task that the request had started by then has another connection; one detached may."""
    made = asyncio.Event()

    async def early() -> None:
        await made.wait()
        with pytest.raises(ProgrammingError, match=REFUSED):
            await on_loop(ask)

    async def audit() -> None:
        await made.wait()
        assert await on_loop(ask) == 0

    async def view() -> None:
        tasks = [asyncio.create_task(early())]
        with detached():
            tasks.append(asyncio.create_task(audit()))
        await on_loop(execute, "SET app.tenant = 'a'")
        made.set()
        await asyncio.gather(*tasks)
        assert await asyncio.create_task(on_loop(ask)) == 0
        await on_loop(execute, "RESET app.tenant")
        assert await on_loop(ask) == 0

    in_request(view)


def test_next_request(server: Server) -> None:
    """Another request, before, after or meanwhile, has nothing to do with it."""
    set_it, looked = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        await in_thread(execute, "SET app.tenant = 'a'")
        set_it.set()
        await looked.wait()
        await in_thread(close)

    async def second() -> None:
        await set_it.wait()
        assert await Author.objects.acount() == 0
        looked.set()

    async def main() -> None:
        async with asyncio.timeout(PATIENCE):
            await asyncio.gather(serve(first), serve(second))
            await serve(second)

    use_wrapper(options={"pool": {"max_size": 2}})
    with asyncio.Runner() as runner:
        runner.run(main())
