"""The metrics of OpenTelemetry, as its SDK exports them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.semconv._incubating.metrics import db_metrics

from pgbackend.pool import counts
from pgbackend.telemetry import instrument
from tests.models import Author
from tests.support.wrapper import AddAlias, avalue


async def test_metrics(add_alias: AddAlias) -> None:
    """The names, units and attributes are those of the conventions; the numbers are the pool's."""
    alias = add_alias({"pool": {"max_size": 2, "min_size": 0}})
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    before = list(counts.observers)
    try:
        instrument(provider)
        await Author.objects.using(alias).acreate(name="Ada")
        await asyncio.gather(*(avalue("SELECT pg_sleep(0.01)", alias) for _ in range(4)))
        data: Any = reader.get_metrics_data()
    finally:
        counts.observers[:] = before
        provider.shutdown()
    units: dict[str, str] = {}
    found: dict[str, Any] = {}
    for metric in data.resource_metrics[0].scope_metrics[0].metrics:
        units[metric.name] = metric.unit
        for point in metric.data.data_points:
            attributes = dict(point.attributes)
            if attributes.pop("db.client.connection.pool.name") == alias:
                value = getattr(point, "value", None)
                key = " ".join([metric.name, *attributes.values()])
                found[key] = point.count if value is None else value
    of_conventions = {
        value for name, value in vars(db_metrics).items() if name.startswith("DB_CLIENT_CONNECTION")
    }
    assert {name for name in units if name.startswith("db.")} <= of_conventions
    assert units["db.client.connection.count"] == "{connection}"
    assert units["db.client.connection.wait_time"] == "s"
    assert found["db.client.connection.count idle"] == 2
    assert found["db.client.connection.count used"] == 0
    assert found["db.client.connection.max"] == 2
    assert found["db.client.connection.idle.min"] == 0
    assert found["db.client.connection.pending_requests"] == 0
    assert found["db.client.connection.timeouts"] == 0
    assert found["db.client.connection.create_time"] == 2
    assert found["db.client.connection.wait_time"] == 4
    assert found["pgbackend.statement.count short"] == 1
    assert found["pgbackend.statement.count cursor"] == 4


@pytest.mark.process
def test_not_installed() -> None:
    """Without OpenTelemetry's API the import says what to install."""
    code = "import sys; sys.modules['opentelemetry'] = None; import pgbackend.telemetry"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'pgbackend[opentelemetry]'" in done.stderr
