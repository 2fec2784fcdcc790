"""Random transactions that gather, cancelled, timed out and killed: each is whole, or not there."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from django.db import DatabaseError, InterfaceError, connection, transaction

from pgbackend import await_bridged
from pgbackend.futures import future, gather
from tests.models import Author
from tests.support import loops
from tests.support.limits import PATIENCE
from tests.support.server import NAME, Server
from tests.support.wrapper import on_loan, until, use_wrapper

# How many transactions there are in `make test`, and in `make test-load`.
FEW, MANY = 25, 200

# Statements of ours that run at once, which the killer looks for.
AT_ONCE = 12


class Failed(Exception):
    pass


def calls_of(rand: random.Random, mark: str) -> list[Callable[[], Any]]:
    """Return the calls that the transaction *mark* may gather; their rows are named after it."""

    def name() -> str:
        return f"{mark}-{rand.getrandbits(48)}"

    def create() -> Any:
        return Author.objects.create(name=name()).pk

    def read() -> Any:
        return Author.objects.filter(name__startswith=mark).count()

    def prefetch() -> Any:
        found = Author.objects.filter(name__startswith=mark).prefetch_related("books")
        return [list(author.books.all()) for author in found]

    def nested() -> Any:
        with transaction.atomic():
            create()
            return read()

    def undone() -> None:
        with suppress(Failed), transaction.atomic():
            Author.objects.create(name=f"undone-{name()}")
            raise Failed

    def by_cursor() -> Any:
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO tests_author (name) VALUES (%s)", [name()])
            cursor.execute("SELECT pg_sleep(0.002)")

    def wait() -> Any:
        await_bridged(asyncio.sleep(rand.random() * 0.003))
        return read()

    def inner() -> Any:
        return gather(future(create)(), future(read)()).result()

    def fail() -> None:
        create()
        if rand.random() < 0.3:
            raise Failed

    def twice() -> Any:
        return Author.objects.create(name="taken" if rand.random() < 0.3 else name())

    def get_or_create() -> Any:
        return Author.objects.get_or_create(name=f"{mark}-once")

    return [
        *(create, read, prefetch, nested, undone, by_cursor, wait, inner, fail, twice),
        get_or_create,
    ]


async def run_transaction(seed: int) -> bool:
    """Run a transaction of gathered calls; return whether it was committed."""
    rand = random.Random(seed)
    mark = f"t{seed}"
    with suppress(Failed, TimeoutError, DatabaseError, InterfaceError):
        async with transaction.atomic():
            await Author.objects.acreate(name=f"{mark}-first")
            for _ in range(rand.randrange(1, 4)):
                savepoints = rand.random() < 0.5
                calls = rand.choices(calls_of(rand, mark), k=rand.randrange(1, 7))
                try:
                    async with asyncio.timeout(rand.choice([None, None, None, 0.005, 0.02])):
                        await gather(
                            *[future(each)() for each in calls],
                            savepoints=savepoints,
                            return_exceptions=rand.random() < 0.5,
                        )
                except (Failed, DatabaseError):
                    if not savepoints or rand.random() < 0.5:
                        raise
            await Author.objects.acreate(name=f"{mark}-last")
        return True
    return False


async def run_all(server: Server, number: int, *, kills: bool) -> dict[str, bool | None]:
    """Run *number* transactions, some at once; return whether each was committed, if known."""
    use_wrapper(options={"pool": {"max_size": 6, "timeout": 20.0}})
    await Author.objects.acreate(name="taken")
    rand = random.Random(number)
    committed: dict[str, bool | None] = {}
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(seed: int) -> None:
        async with turns:
            task = asyncio.create_task(run_transaction(seed))
            if rand.random() < 0.2:
                await asyncio.sleep(rand.random() * 0.03)
                task.cancel()
            try:
                async with asyncio.timeout(PATIENCE):
                    committed[f"t{seed}"] = await task
            except asyncio.CancelledError:
                # The server may have committed at the same moment.
                committed[f"t{seed}"] = None

    async def kill() -> None:
        while True:
            await asyncio.sleep(0.02)
            server.all(
                "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity"
                " WHERE application_name = %s ORDER BY random() LIMIT 1) one",
                NAME,
            )

    killer = asyncio.create_task(kill()) if kills else None
    await asyncio.gather(*[one(seed) for seed in range(number)])
    if killer is not None:
        killer.cancel()
    await until(lambda: not on_loan(connection))
    return committed


@pytest.mark.parametrize("kills", [False, True], ids=["", "killed"])
@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("asyncio", FEW),
        *[pytest.param(name, MANY, marks=pytest.mark.load) for name in loops.LOOPS],
    ],
)
def test_programs(name: str, number: int, kills: bool, server: Server) -> None:
    """What was committed is there, what was not is not, and of none there is a part."""
    with asyncio.Runner(loop_factory=loops.LOOPS[name]) as runner:
        committed = runner.run(run_all(server, number, kills=kills))
    names = [name for (name,) in server.all("SELECT name FROM tests_author")]
    there = {each.partition("-")[0] for each in names} - {"taken"}
    whole = {each.removesuffix("-last") for each in names if each.endswith("-last")}
    assert "undone" not in there
    assert there == whole
    assert {mark for mark, known in committed.items() if known} <= whole
    if not kills:
        assert whole.isdisjoint(mark for mark, known in committed.items() if known is False)
    idle = "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND state LIKE %s"
    assert not server.one(idle, NAME, "idle in transaction%")
