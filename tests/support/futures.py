"""A proxy that counts messages, and authors to gather, for the tests of futures."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.models import Author
from tests.support.proxy import Proxy
from tests.support.server import Server
from tests.support.wrapper import use_wrapper


@asynccontextmanager
async def counted(server: Server, *, size: int = 1) -> AsyncIterator[Proxy]:
    """Let the running task use a pool of *size*, whose messages a proxy counts."""
    async with Proxy(str(server.conn.info.host), server.conn.info.port) as proxy:
        use_wrapper(
            HOST="127.0.0.1",
            PORT=proxy.port,
            options={"pool": {"max_size": size, "timeout": 10.0}, "cancel_timeout": 0.5},
        )
        yield proxy


async def authors(number: int) -> list[int]:
    """Create authors "a0", "a1" and so on, and return their keys."""
    await Author.objects.abulk_create(Author(name=f"a{index}") for index in range(number))
    return [pk async for pk in Author.objects.order_by("pk").values_list("pk", flat=True)]
