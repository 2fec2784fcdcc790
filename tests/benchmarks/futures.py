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

# The most that the ratios may be: of CPU and of time in a transaction, and of time outside one.
TARGETS = {"CPU": 0.35, "time": 0.2, "outside": 1.15}

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


async def compare(first: Way, second: Way, clock: Callable[[], float], times: int) -> list[float]:
    """Return for each round how much of *clock* *second* takes of what *first* takes."""
    ratios = []
    for way in (first, second):
        for _ in range(20):
            await way()
    for _ in range(times):
        spent = []
        for way in (first, second):
            began = clock()
            for _ in range(20):
                await way()
            spent.append((clock() - began) / 20)
        ratios.append(spent[1] / spent[0])
    print(f"    last round: {spent[0] * 1e6:,.0f} and {spent[1] * 1e6:,.0f} us")
    return ratios


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

    def ways(alias: str) -> tuple[Way, Way]:
        items = Item.objects.using(alias)

        async def awaited() -> None:
            for pk in range(READS):
                await items.aget(pk=pk)

        async def gathered() -> None:
            await gather(*[future(items).get(pk=pk) for pk in range(READS)])

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
    for name, alias, clock in (
        ("CPU", "default", time.process_time),
        ("time", "far", time.perf_counter),
    ):
        async with transaction.atomic(using=alias):
            ratios = await compare(*ways(alias), clock, rounds)
        found[name] = statistics.median(ratios)
    found["outside"] = statistics.median(await compare(one, ten, time.perf_counter, rounds // 4))
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
        verdict = "met" if ratio <= TARGETS[name] else "missed"
        print(f"{name:8} {ratio:.3f} of {TARGETS[name]}: {verdict}")


if __name__ == "__main__":
    main()
