"""Celery's workers as the service: whatever pool they have, and as they end."""

import time
from collections.abc import Iterator

import pytest

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
