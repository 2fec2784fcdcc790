"""Measure gathered reads against awaited ones: `python -m tests.benchmarks.futures`.

It starts a server of its own. The two ways take turns, round by round, in one process; the ratios
are medians. CPU is this process's. For the time a proxy, in a process of its own, keeps each answer
for 1 ms, as a network does.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import django
from django.conf import settings

from proj import postgres

# How many reads are gathered, and the rows that they are of.
READS = 10

# The most that the ratios may be: of CPU and of time in a transaction, for reads by primary key,
# and of time outside one. Reads by another field are statements of their own in one message;
# nothing is asked of them.
TARGETS = {
    "CPU, by key": 0.35,
    "time, by key": 0.2,
    "CPU, by name": None,
    "time, by name": None,
    "time, side by side": 1.15,
}

DELAY = 0.001

PROXY = """
import asyncio, sys
from tests.support.proxy import Proxy

async def main():
    async with Proxy(sys.argv[1], int(sys.argv[2])) as proxy:
        proxy.delay = float(sys.argv[3])
        print(proxy.port, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

asyncio.run(main())
"""

Way = Callable[[], Awaitable[Any]]


def configure(server: postgres.Server, port: int) -> None:
    database = {
        "ENGINE": "pgbackend",
        "HOST": postgres.LOOPBACK,
        "USER": server.user,
        "PASSWORD": server.password,
        "NAME": server.dbname,
        "OPTIONS": {"pool": {"max_size": READS}},
    }
    settings.configure(
        DATABASES={
            "default": {**database, "PORT": server.port},
            "far": {**database, "PORT": port},
        },
        INSTALLED_APPS=["pgbackend"],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        USE_TZ=True,
    )
    django.setup()


async def compare(first: Way, second: Way, clock: Callable[[], float], rounds: int) -> float:
    """Return how much of *clock* *second* takes of what *first* takes, the median of the rounds."""
    ratios = []
    for way in (first, second):
        for _ in range(20):
            await way()
    for _ in range(rounds):
        spent = []
        for way in (first, second):
            began = clock()
            for _ in range(20):
                await way()
            spent.append((clock() - began) / 20)
        ratios.append(spent[1] / spent[0])
    return statistics.median(ratios)


async def measure(rounds: int) -> dict[str, float]:
    """Return the median of each ratio."""
    from django.db import connection, connections, models, transaction

    import pgbackend
    from pgbackend.futures import future, gather

    class Item(models.Model):
        name = models.CharField(max_length=20)

        class Meta:
            app_label = "futures"

    @pgbackend.bridged
    def make() -> None:
        with connection.schema_editor() as editor:
            editor.create_model(Item)
        Item.objects.bulk_create(Item(pk=pk, name=f"item {pk}") for pk in range(READS))

    def ways(alias: str, field: str) -> tuple[Way, Way]:
        items = Item.objects.using(alias)
        values = [pk if field == "pk" else f"item {pk}" for pk in range(READS)]

        async def awaited() -> None:
            for value in values:
                await items.aget(**{field: value})

        async def gathered() -> None:
            await gather(*[future(items).get(**{field: value}) for value in values])

        return awaited, gathered

    def sleep() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(0.02)")

    async def one() -> None:
        await pgbackend.bridged(sleep)()

    async def ten() -> None:
        await gather(*[future(sleep)() for _ in range(READS)])

    await make()
    found = {}
    for name, alias, field, clock in (
        ("CPU, by key", "default", "pk", time.process_time),
        ("time, by key", "far", "pk", time.perf_counter),
        ("CPU, by name", "default", "name", time.process_time),
        ("time, by name", "far", "name", time.perf_counter),
    ):
        async with transaction.atomic(using=alias):
            found[name] = await compare(*ways(alias, field), clock, rounds)
    found["time, side by side"] = await compare(one, ten, time.perf_counter, rounds // 4)
    for each in connections.all():
        await pgbackend.bridged(each.close_pool)()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory(prefix="pgbackend-futures-") as folder:
        server = postgres.start(Path(folder), {"fsync": "off"})
        proxy = subprocess.Popen(
            [sys.executable, "-c", PROXY, postgres.LOOPBACK, str(server.port), str(DELAY)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert proxy.stdout is not None
            configure(server, int(proxy.stdout.readline()))
            found = asyncio.run(measure(rounds))
        finally:
            proxy.communicate()
            postgres.stop(Path(folder))
    for name, ratio in found.items():
        target = TARGETS[name]
        asked = "" if target is None else f"; {target} {'met' if ratio <= target else 'missed'}"
        print(f"{name:20} {ratio:.3f}{asked}")


if __name__ == "__main__":
    main()
