"""Celery's workers as the service: whatever pool they have, and as they end."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis

from pgbackend.rpc.protocol.errors import DeadlinePassed, Unavailable
from pgbackend.rpc.transports.celery import CeleryTransport
from pgbackend.rpc.transports.redis_answers import RedisAnswers
from tests.support.brokers import Redis
from tests.support.limits import AT_ONCE, PATIENCE
from tests.support.rpc_services import CeleryService, ask, asleep, closing, send
from tests.support.server import Server

pytestmark = [pytest.mark.process, pytest.mark.load]


@pytest.fixture(scope="module")
def broker() -> Iterator[Redis]:
    with Redis() as broker:
        yield broker


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_pools(broker: Redis, pool: str, server: Server) -> None:
    """Messages are answered at once beside each pool; a worker that is asked to end answers all."""
    service = CeleryService(broker)
    with service.running(pool=pool) as worker, closing(service.transport()) as transport:
        assert len({ask(transport, "pid") for _ in range(4)}) == 1
        began = time.monotonic()
        futures = [send(transport, "sleep:1", PATIENCE) for _ in range(8)]
        assert [each.result(PATIENCE) for each in futures] == ["sleep:1"] * 8
        assert time.monotonic() - began < 6
        with asleep(server):
            last = send(transport, "sleep:1")
        assert worker.end() == 0
        assert last.result(AT_ONCE) == "sleep:1"
        with broker.client() as client:
            assert not client.exists("rpc", "unacked")


def test_queues_and_results_of_other_names(broker: Redis, server: Server) -> None:
    """The names of the queues and RESULT_BACKEND say where messages and their results go."""
    results = broker.url.removesuffix("/0") + "/5"
    settings = {
        "BROKER_URL": broker.url,
        "RESULT_BACKEND": results,
        "DEFAULT_QUEUE_NAME": "kitchen",
        "PRIORITY_QUEUE_NAME": "kitchen.high",
    }
    service = CeleryService(broker)
    with (
        service.worker(queue="kitchen", RPC_RESULT_BACKEND=results),
        closing(CeleryTransport.from_settings(settings)) as transport,
        closing(service.transport()) as other,
        redis.from_url(broker.url) as messages,
        redis.from_url(results) as stored,
    ):
        before = set(messages.keys("celery-task-meta-*"))
        for urgent in (False, True):
            assert ask(transport, "v1.a", PATIENCE, urgent=urgent) == "v1.a"
        with pytest.raises(DeadlinePassed):
            ask(other, "v1.b", 0.5)
        assert messages.llen("rpc\x06\x163") == 1
        with asleep(server):
            left = send(transport, "sleep:1")
        transport.close()
        with pytest.raises(Unavailable):
            left.result(AT_ONCE)
        deadline = time.monotonic() + AT_ONCE
        while not stored.keys("celery-task-meta-*"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert set(messages.keys("celery-task-meta-*")) <= before
        messages.flushall()


def test_answers_come_to_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Publishers and the loop that ask at once for what receives answers get the same."""

    class Slow(RedisAnswers):
        def __init__(self, *args: Any) -> None:
            time.sleep(0.05)
            super().__init__(*args)

    monkeypatch.setattr("pgbackend.rpc.transports.celery.RedisAnswers", Slow)
    transport = CeleryTransport("redis://127.0.0.1:1/0")
    with ThreadPoolExecutor(8) as threads:
        found = [each.result() for each in [threads.submit(transport.answers) for _ in range(8)]]
    assert len({id(each) for each in found}) == 1
