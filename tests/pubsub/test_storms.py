"""The storms in short, and a thousand errors; `python -m tests.pubsub.storms` has more."""

import asyncio
import gc
import logging
import resource
import subprocess
import sys

import pytest

from pgbackend.pubsub import Notification, anotify_many
from tests.pubsub.site import jobs
from tests.pubsub.storms import kills
from tests.support.pubsub import until, working
from tests.support.script import ROOT


@pytest.mark.process
def test_kills() -> None:
    """Processes that are killed while they handle notifications lose none, and repeat none."""
    outcome = kills(200, 2, 4, "--worker-start-method", "fork")
    assert outcome.is_good, str(outcome)
    assert len(outcome.handled) == 200


@pytest.mark.load
@pytest.mark.process
def test_outages() -> None:
    """A server that is restarted, and one that is silent for a while, lose and repeat none."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.pubsub.storms", "restarts", "silence"),
            *("--notifications", "400", "--processes", "2", "--restarts", "2", "--seconds", "8"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout


async def forget_timers() -> None:
    """Have the loop forget timers that were cancelled: it does once they are many."""
    loop = asyncio.get_running_loop()
    for _ in range(1000):
        loop.call_later(60, int).cancel()
    await asyncio.sleep(0)
    await asyncio.sleep(0)


@pytest.mark.load
async def test_a_thousand_errors(caplog: pytest.LogCaptureFixture) -> None:
    """Listeners that fail a thousand times leave nothing in memory."""
    # The handler of the test would keep each record, with its traceback.
    caplog.set_level(logging.CRITICAL, "pgbackend.pubsub")

    async def fail(count: int) -> int:
        await anotify_many([jobs.Once(n, "fail") for n in range(count)])
        before = worker.progress.counts["dead"]
        await until(lambda: worker.progress.counts["dead"] == before + count)
        await Notification.objects.all().adelete()
        jobs.called.clear()
        await forget_timers()
        gc.collect()
        return len(gc.get_objects())

    async with working(jobs.Once) as worker:
        warm = await fail(300)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        await fail(500)
        assert await fail(500) - warm < 300
        # Kilobytes; 1,000 tracebacks with what they hold would be several thousand.
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 8000
