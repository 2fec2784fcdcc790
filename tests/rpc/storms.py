"""Storms over a service: workers are killed, its PostgreSQL is restarted, clients are cancelled.

    python -m tests.rpc.storms                    # by postgres and by Celery over Redis, in long
    python -m tests.rpc.storms redis --orders 500 --clients 20 --kills 10 --restarts 2

Each order writes one row. A client sends one again, by the same idempotency key, until it is
answered; one that was cancelled is sent no more, and may have been written. Each storm says how
many were acknowledged, which errors there were and how many came after their deadline, how many
rows were lost or written twice, and what is left behind.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from pgbackend.rpc.transports.celery_service import KEEP
from tests.support.own_server import OwnServer

TRANSPORTS = ("postgres", "redis")

# Seconds: of a call, and those that its error may come later on a machine that has much to do.
_TIMEOUT, _LATE = 6.0, 2.0
# How long a storm may take to calm down, seconds: a lease of a worker that was killed has to end.
_CALM = 120.0
# Of an order that is answered by errors alone.
_TRIES = 100


@dataclass
class Outcome:
    """What became of the orders of a storm, by their numbers."""

    name: str
    sent: int = 0
    acknowledged: set[str] = field(default_factory=set)
    cancelled: set[str] = field(default_factory=set)
    given_up: set[str] = field(default_factory=set)
    events: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    late: list[float] = field(default_factory=list)
    written: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def lost(self) -> list[str]:
        """Those that were acknowledged, and of which there is no row."""
        return sorted(self.acknowledged - self.written.keys())

    @property
    def twice(self) -> list[str]:
        """Those that were written more than once."""
        return sorted(number for number, count in self.written.items() if count > 1)

    def __str__(self) -> str:
        def counts(found: Counter[str]) -> str:
            return ", ".join(f"{count} {name}" for name, count in found.items()) or "none"

        return (
            f"{self.name}: {counts(self.events)}; {self.sent} messages,"
            f" {len(self.acknowledged)} orders acknowledged, {len(self.cancelled)} cancelled,"
            f" {len(self.given_up)} given up; errors: {counts(self.errors)}; {len(self.late)} after"
            f" their deadline; {len(self.lost)} lost, {len(self.twice)} twice; left:"
            f" {counts(self.left)}; in {self.seconds:.1f} s"
        )

    @property
    def is_good(self) -> bool:
        """Whether each order that was acknowledged was written once, and nothing is left."""
        return not (self.lost or self.twice or self.late or self.given_up or self.left)


class Storm:
    """Has clients place orders with a *service*, and watches what becomes of them."""

    def __init__(self, service: Any, name: str, orders: int) -> None:
        self.service = service
        self.outcome = Outcome(name)
        self.total = orders
        self._numbers: Iterator[int] = iter(range(orders))

    async def clients(self, count: int) -> None:
        """Place all orders by so many clients at once."""
        from django.conf import settings

        from pgbackend.rpc.client import Client

        client = Client(
            self.service.transport(),
            settings.PGBACKEND_RPC["KEYS"],
            principal="chef",
            timeout=_TIMEOUT,
        )
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(count):
                    group.create_task(self._client(client))
        finally:
            await asyncio.to_thread(client.close)

    async def _client(self, client: Any) -> None:
        for number in map(str, self._numbers):
            if random.random() < 0.1:
                await self._cancelled(client, number)
                continue
            for _ in range(_TRIES):
                if await self._place(client, number):
                    break
            else:
                self.outcome.given_up.add(number)

    async def _cancelled(self, client: Any, number: str) -> None:
        """Place an order, and cancel that at some time."""
        placing = asyncio.create_task(self._place(client, number))
        await asyncio.wait([placing], timeout=random.uniform(0, 0.1))
        if placing.done() and number in self.outcome.acknowledged:
            return
        self.outcome.cancelled.add(number)
        placing.cancel()
        await asyncio.wait([placing])

    async def _place(self, client: Any, number: str) -> bool:
        """Place an order; return whether that was acknowledged, or raise what is no answer."""
        from pgbackend.rpc.protocol.errors import RemoteError

        order = client.model("rpc_site.ServerModel").create(some_field=number)
        began = time.monotonic()
        self.outcome.sent += 1
        placed = client.gather(order, idempotency=f"{self.outcome.name}-{number}")
        try:
            await placed
        except asyncio.CancelledError:
            # What nobody cancels goes on, and nobody looks at its end.
            if random.random() < 0.5:
                placed.cancel()
            placed.add_done_callback(lambda future: future.outcome())
            raise
        except RemoteError as error:
            self.outcome.errors[error.code] += 1
            took = time.monotonic() - began
            if took > _TIMEOUT + _LATE:
                self.outcome.late.append(took)
            # A service that is away says so at once.
            await asyncio.sleep(random.uniform(0.05, 0.2))
            return False
        self.outcome.acknowledged.add(number)
        return True

    @property
    def done(self) -> int:
        """How many orders came to an end."""
        found = self.outcome
        return len(found.acknowledged) + len(found.cancelled) + len(found.given_up)

    async def reaches(self, share: float) -> None:
        """Wait until that *share* of the orders came to an end."""
        while self.done < share * self.total:
            await asyncio.sleep(0.01)


async def storm(service: Any, name: str, server: OwnServer, given: argparse.Namespace) -> Outcome:
    """Kill workers and restart the server while orders are placed; return what became of them."""
    found = Storm(service, name, given.orders)
    outcome = found.outcome
    began = time.monotonic()
    with ExitStack() as stack:
        workers = [
            await asyncio.to_thread(stack.enter_context, service.running())
            for _ in range(given.workers)
        ]
        tasks = len(asyncio.all_tasks())
        placing = asyncio.create_task(found.clients(given.clients))
        happenings = ["kills"] * given.kills + ["restarts"] * given.restarts
        random.shuffle(happenings)
        for number, happening in enumerate(happenings, 1):
            reaching = asyncio.create_task(found.reaches(number / (len(happenings) + 1)))
            await asyncio.wait([reaching, placing], return_when=asyncio.FIRST_COMPLETED)
            reaching.cancel()
            if placing.done():
                break
            outcome.events[happening] += 1
            if happening == "kills":
                at = random.randrange(len(workers))
                if workers[at].process.poll() is not None:
                    outcome.left["workers that ended by themselves"] += 1
                    print(workers[at].text())
                await asyncio.to_thread(workers[at].kill)
                workers[at] = stack.enter_context(service.worker())
            else:
                await asyncio.to_thread(server.restart)
        await placing
        outcome.left["tasks"] += len(asyncio.all_tasks()) - tasks
        await asyncio.to_thread(_calm, service, server, outcome)
        for each in workers:
            outcome.events[f"exit codes {await asyncio.to_thread(each.end)}"] += 1
    outcome.seconds = time.monotonic() - began
    await asyncio.to_thread(_look, server, outcome)
    # Of what there are none is nothing said.
    outcome.left = +outcome.left
    return outcome


def _calm(service: Any, server: OwnServer, outcome: Outcome) -> None:
    """Wait until nothing is left of the messages, or nothing more happens."""
    deadline = time.monotonic() + _CALM
    while (left := _messages(service, server)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for name in left:
        outcome.left[name] += 1


def _messages(service: Any, server: OwnServer) -> list[str]:
    """Return what is left of messages: rows of the channel, or keys of the Redis."""
    if service.broker is not None:
        with service.broker.client() as client:
            # Of kombu: which queues there are. An answer that nobody fetches is there for a while.
            return [
                f"key {key}"
                for key in client.scan_iter()
                if not key.startswith("_kombu.") and not 0 < client.ttl(key) <= KEEP
            ]
    return [
        f"notification {state}"
        for (state,) in server.all("SELECT state FROM pgpubsub_notification")
    ]


def _look(server: OwnServer, outcome: Outcome) -> None:
    """Take the rows of the orders, and look for what the workers have left in the server."""
    rows = server.all("DELETE FROM rpc_site_servermodel RETURNING some_field")
    outcome.written = Counter(number for (number,) in rows)
    for name, query in (
        (
            "connections of workers",
            "SELECT FROM pg_stat_activity WHERE application_name LIKE 'pgbackend-rpc%'",
        ),
        ("advisory locks", "SELECT FROM pg_locks WHERE locktype = 'advisory'"),
    ):
        outcome.left[name] += len(server.all(query))


def main() -> int:
    """Run the storms that are named, all by default, on a server of their own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("transports", nargs="*", help=", ".join(TRANSPORTS))
    parser.add_argument("--orders", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=40)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("--seed", type=int, default=None)
    given = parser.parse_args()
    seed = random.randrange(2**32) if given.seed is None else given.seed
    random.seed(seed)
    print(f"seed {seed}", flush=True)
    server = OwnServer()
    good = True
    try:
        server.set_up()
        from tests.support.rpc_services import SERVICES

        for name in given.transports or TRANSPORTS:
            with SERVICES[name](real=True) as service:
                outcome = asyncio.run(storm(service, name, server, given))
            print(outcome, flush=True)
            good = good and outcome.is_good
    finally:
        server.close()
    return not good


if __name__ == "__main__":
    sys.exit(main())
