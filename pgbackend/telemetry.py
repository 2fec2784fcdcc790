"""The statistics of pools as metrics of OpenTelemetry, with the extra ``opentelemetry``.

    from pgbackend.telemetry import instrument

    instrument()

The names are those of its semantic conventions for connection pools; what these have no name for
begins with ``pgbackend``. For spans of statements there is OpenTelemetry's own instrumentation of
psycopg.

https://opentelemetry.io/docs/specs/semconv/database/database-metrics/
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from django.core.exceptions import ImproperlyConfigured

from .pool import counts
from .statistics import pools_by_alias, sums_by_alias
from .version import __version__

try:
    from opentelemetry import metrics
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
except ImportError as error:
    raise ImproperlyConfigured(
        "pgbackend.telemetry needs opentelemetry-api: pip install 'pgbackend[opentelemetry]'"
    ) from error

__all__ = ["instrument"]

_POOL_NAME = "db.client.connection.pool.name"
_STATE = "db.client.connection.state"
_WAY = "pgbackend.statement.way"

_Callback = Callable[[CallbackOptions], Iterable[Observation]]


def instrument(meter_provider: MeterProvider | None = None) -> None:
    """Have the statistics of all pools of this process observed, summed up by alias.

    *meter_provider* is the global one by default. Call it once in each process.
    """
    meter = metrics.get_meter("pgbackend", __version__, meter_provider)
    meter.create_observable_up_down_counter(
        "db.client.connection.count",
        [_observe_count],
        unit="{connection}",
        description="The number of connections that are in the state that `state` names.",
    )
    for name, key, unit, description in (
        ("max", "max_size", "{connection}", "The maximum number of open connections allowed."),
        ("idle.min", "min_size", "{connection}", "The minimum number of idle open connections."),
        ("pending_requests", "waiting", "{request}", "The number of tasks that wait for one."),
    ):
        meter.create_observable_up_down_counter(
            f"db.client.connection.{name}", [_of_sizes(key)], unit=unit, description=description
        )
    for name, ways, unit, description in (
        (
            "db.client.connection.timeouts",
            {"": "timeouts"},
            "{timeout}",
            "The number of tasks that waited for a connection in vain.",
        ),
        (
            "pgbackend.connection.discarded",
            {"": "discarded"},
            "{connection}",
            "The number of connections that were lost.",
        ),
        (
            "pgbackend.session.resets",
            {"": "resets"},
            "{session}",
            "The number of sessions that were reset.",
        ),
        (
            "pgbackend.statement.cancelled",
            {"": "cancelled"},
            "{statement}",
            "The number of statements that were stopped in the server.",
        ),
        (
            "pgbackend.statement.count",
            {"short": "short", "cursor": "cursor", "thread": "thread"},
            "{statement}",
            "The number of statements, by the way they were sent.",
        ),
    ):
        meter.create_observable_counter(name, [_of_sums(ways)], unit=unit, description=description)
    times = {
        "wait": meter.create_histogram(
            "db.client.connection.wait_time",
            unit="s",
            description="The time it took to obtain a connection where none was idle.",
            explicit_bucket_boundaries_advisory=counts.BOUNDS,
        ),
        "create": meter.create_histogram(
            "db.client.connection.create_time",
            unit="s",
            description="The time it took to create a new connection.",
            explicit_bucket_boundaries_advisory=counts.BOUNDS,
        ),
    }

    def observe(pool: Any, what: str, seconds: float) -> None:
        times[what].record(seconds, {_POOL_NAME: pool.alias})

    counts.observers.append(observe)


def _observe_count(options: CallbackOptions) -> Iterable[Observation]:
    for alias, of_alias in pools_by_alias().items():
        # The conventions know two states: a connection in reset can be lent to nobody.
        idle = sum(each.idle for each in of_alias)
        used = sum(each.on_loan + each.resetting for each in of_alias)
        yield Observation(idle, {_POOL_NAME: alias, _STATE: "idle"})
        yield Observation(used, {_POOL_NAME: alias, _STATE: "used"})


def _of_sizes(key: str) -> _Callback:
    def observe(options: CallbackOptions) -> Iterable[Observation]:
        for alias, of_alias in pools_by_alias().items():
            yield Observation(sum(getattr(each, key) for each in of_alias), {_POOL_NAME: alias})

    return observe


def _of_sums(ways: dict[str, str]) -> _Callback:
    def observe(options: CallbackOptions) -> Iterable[Observation]:
        for alias, found in sums_by_alias().items():
            for way, key in ways.items():
                attributes = {_POOL_NAME: alias, _WAY: way} if way else {_POOL_NAME: alias}
                yield Observation(found[key], attributes)

    return observe
