"""django-pghistory's context, on the loop and in threads."""

from __future__ import annotations

import pytest

from tests.instrumentation.scripts import LOCALS, ON_LOOP, WATCHED, run
from tests.instrumentation.site import expected, make_library

pytestmark = pytest.mark.process


@ON_LOOP
def test_pghistory(sync_on_loop: bool) -> None:
    """What synchronous middleware keeps for a request in its thread is there for its statements.

    They all are seen, those of tasks and threads too, each by the state of its own request.
    """
    make_library()
    seen = run(
        WATCHED,
        path=LOCALS,
        MIDDLEWARE=["pghistory.runtime.middleware"],
        PGBACKEND_SYNC_ON_LOOP=sync_on_loop,
    )
    assert seen == expected(without=("BEGIN", "COMMIT"))


HISTORY_IN_SCRIPT = """
conf["DATABASES"].pop("other")
conf["DATABASE_ROUTERS"] = []
settings.configure(**conf)
import django
django.setup()
import uvloop
from asgiref.sync import sync_to_async
from django.db import connection
from pgbackend import bridged
from pghistory.runtime import _tracker, context
from tests.instrumentation.site import text
from tests.models import Author


async def work(name):
    async with context() as outer:
        await Author.objects.filter(name=name).acount()
        async with context() as inner:
            assert inner is outer
            await asyncio.gather(*(Author.objects.filter(name=name).aexists() for _ in range(2)))
        await bridged(Author.objects.filter(name=name).count)()
    await Author.objects.filter(name=name).acount()
    assert not hasattr(_tracker, "value")
    assert connection.execute_wrappers == []
    return [each for each in outer.statements if f"'{name}'" in each] == outer.statements, len(
        outer.statements
    )


async def main():
    names = [f"a{number}" for number in range(9)]
    done = await asyncio.gather(*map(work, names))
    done += await asyncio.gather(*map(bridged(work), names))
    return done

for factory in (asyncio.new_event_loop, uvloop.new_event_loop):
    with asyncio.Runner(loop_factory=factory) as runner:
        assert runner.run(main()) == [(True, 4)] * 18
print("[]")
"""


def test_pghistory_outside_requests() -> None:
    """Its asynchronous context manager is for the statements of its block, on the loop as well."""
    assert run(HISTORY_IN_SCRIPT, path=LOCALS) == []
