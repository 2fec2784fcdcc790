"""The examples of the page on metrics."""

from __future__ import annotations

import asyncio

import prometheus_client
import pytest
from opentelemetry import metrics

from pgbackend.pool import counts
from tests.pages.examples import example
from tests.support.wrapper import avalue, until, use_wrapper

PAGE = "docs/howto/metrics.md"
SHORTAGE = example(PAGE, "def shortage")
PROMETHEUS = example(PAGE, "pgbackend.prometheus")
TELEMETRY = example(PAGE, "pgbackend.telemetry")


async def test_shortage() -> None:
    """It says how many wait, as long as they do."""
    code = SHORTAGE.run()
    use_wrapper(options={"pool": {"max_size": 1, "timeout": 30}})
    assert code.shortage() == {}
    tasks = [asyncio.create_task(avalue("SELECT pg_sleep(0.1)")) for _ in range(3)]
    await until(lambda: code.shortage() == {"default": 2})
    await asyncio.gather(*tasks)
    assert code.shortage() == {}


async def test_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prometheus' registry has the metrics, and OpenTelemetry's global meter those of its own."""
    registry = prometheus_client.CollectorRegistry()
    monkeypatch.setattr(prometheus_client, "REGISTRY", registry)
    PROMETHEUS.run()
    await avalue("SELECT 1")
    assert b'pgbackend_statements_total{alias="default",way="cursor"}' in (
        prometheus_client.generate_latest(registry)
    )
    before = list(counts.observers)
    try:
        TELEMETRY.run()
        assert len(counts.observers) == len(before) + 1
        assert metrics.get_meter("pgbackend") is not None
    finally:
        counts.observers[:] = before
