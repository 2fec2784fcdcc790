"""The statistics of pools as metrics of Prometheus, with the extra ``prometheus``.

    from pgbackend.prometheus import install

    install()

In a process of its own the metrics are read whenever Prometheus asks. Where processes share
``PROMETHEUS_MULTIPROC_DIR``, each writes its numbers there every few seconds.

https://prometheus.github.io/client_python/multiprocess/
"""

from __future__ import annotations

import atexit
import os
import threading
from collections import Counter as Numbers
from collections.abc import Iterable
from typing import Any, NamedTuple

from django.core.exceptions import ImproperlyConfigured

from .pool import counts
from .statistics import PoolStatistics, buckets, pools_by_alias, sums_by_alias

try:
    import prometheus_client as client
    from prometheus_client.metrics_core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )
    from prometheus_client.registry import Collector, CollectorRegistry
except ImportError as error:
    raise ImproperlyConfigured(
        "pgbackend.prometheus needs prometheus_client: pip install 'pgbackend[prometheus]'"
    ) from error

__all__ = ["PoolCollector", "install"]

# The name and the help of each gauge, with the attributes of `PoolStatistics` by the value of the
# label "state"; one without that label has "".
_GAUGES: dict[str, tuple[str, dict[str, str]]] = {
    "pgbackend_pool_connections": (
        "Connections of the pools, by what they do",
        {"idle": "idle", "used": "on_loan", "resetting": "resetting"},
    ),
    "pgbackend_pool_max_connections": ("Connections there may be in the pools", {"": "max_size"}),
    "pgbackend_pool_waiting": ("Tasks that wait for a connection now", {"": "waiting"}),
}


class _Count(NamedTuple):
    help: str
    # The names of `sums_by_alias` by the value of the label "way"; without that label "".
    ways: dict[str, str]
    # What the number is divided by.
    by: int = 1


_COUNTERS = {
    "pgbackend_pool_borrowed": _Count("Connections that were borrowed", {"": "borrowed"}),
    "pgbackend_pool_timeouts": _Count("Tasks that waited in vain", {"": "timeouts"}),
    "pgbackend_pool_connects": _Count("Connections that were opened", {"": "connects"}),
    "pgbackend_pool_connect_seconds": _Count("Time it took to open them", {"": "connect_ms"}, 1000),
    "pgbackend_pool_connect_errors": _Count("Failed attempts to connect", {"": "connect_errors"}),
    "pgbackend_pool_discarded": _Count("Connections that were lost", {"": "discarded"}),
    "pgbackend_pool_resets": _Count("Sessions that were reset", {"": "resets"}),
    "pgbackend_statements": _Count(
        "Statements, by the way they were sent",
        {"short": "short", "cursor": "cursor", "thread": "thread"},
    ),
    "pgbackend_statements_cancelled": _Count(
        "Statements that were stopped in the server", {"": "cancelled"}
    ),
}

_WAITS = "pgbackend_pool_wait_seconds", "How long tasks waited that found no idle connection"


class PoolCollector(Collector):
    """Collects the statistics of all pools of this process, summed up by alias."""

    def collect(self) -> Iterable[Metric]:
        """Return the metrics of this moment."""
        found, open_now = sums_by_alias(), pools_by_alias()
        for name, (text, states) in _GAUGES.items():
            gauge = GaugeMetricFamily(name, text, labels=_labels(states, "state"))
            for alias in found:
                for state, value in _sizes(open_now.get(alias, []), states).items():
                    gauge.add_metric(_values(alias, state), value)
            yield gauge
        for name, count in _COUNTERS.items():
            counter = CounterMetricFamily(name, count.help, labels=_labels(count.ways, "way"))
            for alias in found:
                for way, key in count.ways.items():
                    counter.add_metric(_values(alias, way), found[alias][key] / count.by)
            yield counter
        waits = HistogramMetricFamily(*_WAITS, labels=["alias"])
        for alias in found:
            classes = [(_bound(seconds), number) for seconds, number in buckets(found[alias])]
            waits.add_metric([alias], classes, sum_value=found[alias]["wait_ms"] / 1000)
        yield waits


def install(registry: CollectorRegistry | None = None, interval: float = 5.0) -> None:
    """Have the metrics collected by *registry*, Prometheus' own by default.

    With ``PROMETHEUS_MULTIPROC_DIR`` a thread of each process writes them every *interval* seconds
    and at the end, and forked processes have a thread of their own. Call it once, where the
    application is loaded.
    """
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ or "prometheus_multiproc_dir" in os.environ:
        publisher = _Publisher(registry or client.REGISTRY, interval)
        publisher.start()
        os.register_at_fork(after_in_child=publisher.start_again)
        atexit.register(publisher.publish)
    else:
        (registry or client.REGISTRY).register(PoolCollector())


class _Publisher:
    """Writes the statistics of this process to the files that Prometheus' collector adds up."""

    def __init__(self, registry: CollectorRegistry, interval: float) -> None:
        self._interval = interval
        self._gauges = {
            name: client.Gauge(
                name,
                text,
                _labels(states, "state"),
                registry=registry,
                multiprocess_mode="livesum",
            )
            for name, (text, states) in _GAUGES.items()
        }
        self._counters = {
            name: client.Counter(name, count.help, _labels(count.ways, "way"), registry=registry)
            for name, count in _COUNTERS.items()
        }
        self._waits = client.Histogram(*_WAITS, ["alias"], registry=registry, buckets=counts.BOUNDS)
        counts.observers.append(self._observe)
        # What has been written of each count already, by alias.
        self._written: dict[str, Numbers[str]] = {}
        self._lock = threading.Lock()

    def _observe(self, pool: Any, what: str, seconds: float) -> None:
        if what == "wait":
            self._waits.labels(pool.alias).observe(seconds)

    def start(self) -> None:
        """Begin to write."""
        threading.Thread(target=self._run, name="pgbackend-prometheus", daemon=True).start()

    def start_again(self) -> None:
        """Begin to write in a forked process, whose counts begin where its parent's were."""
        self._lock = threading.Lock()
        self._written = sums_by_alias()
        self.start()

    def _run(self) -> None:
        wait = threading.Event()
        while True:
            self.publish()
            wait.wait(self._interval)

    def publish(self) -> None:
        """Write the numbers of this moment."""
        with self._lock:
            open_now = pools_by_alias()
            for alias, found in sums_by_alias().items():
                self._publish(alias, open_now.get(alias, []), found)

    def _publish(self, alias: str, of_alias: list[PoolStatistics], found: Numbers[str]) -> None:
        for name, (_, states) in _GAUGES.items():
            for state, value in _sizes(of_alias, states).items():
                self._gauges[name].labels(*_values(alias, state)).set(value)
        before = self._written.get(alias, Numbers())
        self._written[alias] = found
        for name, count in _COUNTERS.items():
            for way, key in count.ways.items():
                more = max(0, found[key] - before[key]) / count.by
                self._counters[name].labels(*_values(alias, way)).inc(more)


def _sizes(of_alias: list[PoolStatistics], states: dict[str, str]) -> dict[str, int]:
    """Return the sums of sizes over the pools of an alias, by the value of their label."""
    return {state: sum(getattr(each, key) for each in of_alias) for state, key in states.items()}


def _labels(values: dict[str, str], name: str) -> list[str]:
    return ["alias"] if "" in values else ["alias", name]


def _values(alias: str, value: str) -> list[str]:
    return [alias, value] if value else [alias]


def _bound(seconds: float) -> str:
    return "+Inf" if seconds == float("inf") else str(seconds)
