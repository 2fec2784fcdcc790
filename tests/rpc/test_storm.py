"""Workers are killed while clients write; `python -m tests.rpc.storms` has more."""

import asyncio
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack

import pytest
from django.conf import settings

from pgbackend.rpc.protocol.errors import DeadlinePassed
from tests.faults.fix_servers import leave_out
from tests.rpc.site.models import ServerModel
from tests.rpc.storms import TRANSPORTS
from tests.rpc.waiter import models as waiter
from tests.support.brokers import redis_binary
from tests.support.limits import PATIENCE
from tests.support.rpc import alias
from tests.support.rpc_services import SERVICES
from tests.support.script import ROOT
from tests.support.server import Server

WRITES, KILLS, CLIENTS = 500, 20, 40

# Seconds: longer than two leases and the starts of workers; what a Redis has lost is waited for.
TIMEOUTS = {"redis": 25.0, "postgres": 40.0}


@pytest.mark.load
@pytest.mark.soak
@pytest.mark.process
@pytest.mark.parametrize("name", list(TIMEOUTS))
async def test_storm_of_kills(name: str, server: Server) -> None:
    """Each write is done once and acknowledged, or ends with a coded error by its deadline."""
    done: set[str] = set()
    doubtful: set[str] = set()
    conf = {"KEYS": settings.PGBACKEND_RPC["KEYS"], "KEY": "k1", "TIMEOUT": TIMEOUTS[name]}
    with SERVICES[name](real=True) as service, ExitStack() as stack:
        workers = [
            await asyncio.to_thread(stack.enter_context, service.running()) for _ in range(2)
        ]
        numbers = iter(range(WRITES))
        with alias(**service.settings(), **conf):

            async def write() -> None:
                for number in numbers:
                    try:
                        await waiter.ClientModel.objects.acreate(some_field=f"{number}")
                        done.add(f"{number}")
                    except DeadlinePassed:
                        # kombu takes a message from a Redis before it notes there that it has it.
                        doubtful.add(f"{number}")

            writing = [asyncio.create_task(write()) for _ in range(CLIENTS)]
            for kill in range(KILLS):
                async with asyncio.timeout(PATIENCE):
                    while len(done) + len(doubtful) < 20 * (kill + 1):
                        await asyncio.sleep(0.005)
                await asyncio.to_thread(workers[kill % 2].kill)
                workers[kill % 2] = stack.enter_context(service.worker())
            await asyncio.gather(*writing)
        if name == "redis":
            with service.broker.client() as client:
                assert not client.exists("rpc", "rpc.high", "unacked", "unacked_index")
        else:
            # A message whose workers died again and again is tried no more.
            left = server.all("SELECT state FROM pgpubsub_notification")
            assert left == [("dead",)] * len(doubtful)
    found = Counter(
        [each async for each in ServerModel.objects.values_list("some_field", flat=True)]
    )
    assert len(done) + len(doubtful) == WRITES
    assert max(found.values()) == 1
    assert done <= found.keys()
    assert len(doubtful) <= 2 * KILLS


@pytest.mark.load
@pytest.mark.process
@pytest.mark.parametrize("name", TRANSPORTS)
def test_storm(name: str) -> None:
    """Kills, a restart of the server and cancelled clients lose no order, and repeat none."""
    if name == "redis" and redis_binary() is None:
        leave_out("there is no Redis")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.rpc.storms", name),
            *("--orders", "150", "--clients", "15", "--kills", "2", "--restarts", "1"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
