"""The metrics of Prometheus, read as it reads them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pgbackend.prometheus import install
from tests.models import Author
from tests.support.script import run_script
from tests.support.wrapper import AddAlias, avalue

LABELS = tuple[tuple[str, str], ...]


def samples(text: str, alias: str) -> dict[str, float]:
    """Return the samples of *alias*, by name and the value of another label."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            if labels.pop("alias", None) == alias:
                found[" ".join([sample.name, *labels.values()])] = sample.value
    return found


async def test_collector(add_alias: AddAlias) -> None:
    """The registry's text has sizes as gauges, counts as counters, and waits as a histogram."""
    alias = add_alias({"pool": {"max_size": 2, "min_size": 0}})
    registry = CollectorRegistry()
    install(registry)
    assert samples(generate_latest(registry).decode(), alias) == {}
    await Author.objects.using(alias).acreate(name="Ada")
    await asyncio.gather(*(avalue("SELECT pg_sleep(0.01)", alias) for _ in range(4)))
    found = samples(generate_latest(registry).decode(), alias)
    assert found["pgbackend_pool_connections idle"] == 2
    assert found["pgbackend_pool_connections used"] == 0
    assert found["pgbackend_pool_max_connections"] == 2
    assert found["pgbackend_pool_waiting"] == 0
    assert found["pgbackend_pool_borrowed_total"] == 5
    assert found["pgbackend_pool_connects_total"] == 2
    assert found["pgbackend_statements_total short"] == 1
    assert found["pgbackend_statements_total cursor"] == 4
    assert found["pgbackend_statements_total thread"] == 0
    assert found["pgbackend_pool_wait_seconds_count"] == 4
    assert found["pgbackend_pool_wait_seconds_bucket +Inf"] == 4
    assert found["pgbackend_pool_wait_seconds_sum"] > 0


async def test_linted(add_alias: AddAlias) -> None:
    """Each family has a help, and names of the same family have the same labels."""
    registry = CollectorRegistry()
    install(registry)
    await avalue("SELECT 1")
    for family in registry.collect():
        assert family.documentation
        assert not family.name.endswith(("_total", "_count", "_sum"))
        for sample in family.samples:
            assert "alias" in sample.labels


@pytest.mark.process
def test_many_aliases() -> None:
    """To collect 1,000 aliases takes no look at all of them for each."""
    printed = run_script(
        """
        settings.configure(**conf)
        import time
        import django
        django.setup()
        from pgbackend.pool import counts
        from pgbackend.prometheus import PoolCollector

        for number in range(1000):
            counts.count_in_thread(f"tenant{number}")
        began = time.process_time()
        families = list(PoolCollector().collect())
        print(time.process_time() - began, len(families))
        """
    )
    seconds, families = printed.split()
    assert int(families) > 10
    assert float(seconds) < 3, seconds


PROCESSES = """
settings.configure(**conf)
import django
django.setup()
import asyncio, os
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from pgbackend.prometheus import install
from tests.models import Author

async def work(number):
    for _ in range(number):
        await Author.objects.acount()

install(interval=0.01)
asyncio.run(work(2))
child = os.fork()
if not child:
    asyncio.run(work(3))
    raise SystemExit
assert os.waitpid(child, 0)[1] == 0
import atexit
import pgbackend.prometheus
atexit._run_exitfuncs()
registry = CollectorRegistry()
MultiProcessCollector(registry)
print(generate_latest(registry).decode())
"""


@pytest.mark.process
def test_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forked processes add up: what each has sent is in the sum once."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    found = samples(run_script(PROCESSES), "default")
    assert found["pgbackend_statements_total short"] == 5
    assert found["pgbackend_pool_connects_total"] == 2
    assert found["pgbackend_pool_wait_seconds_count"] == 2


@pytest.mark.process
def test_not_installed() -> None:
    """Without prometheus_client the import says what to install."""
    code = "import sys; sys.modules['prometheus_client'] = None; import pgbackend.prometheus"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "pip install 'pgbackend[prometheus]'" in done.stderr
