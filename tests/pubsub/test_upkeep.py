"""The command `pubsub`: stats, requeue, prune, health, and their exit codes."""

import io
import json
from datetime import timedelta
from pathlib import Path
from time import time
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone

from pgbackend import bridged
from pgbackend.pubsub import Notification, notify_many
from tests.pubsub.site import jobs
from tests.support.pubsub import effects, until, working


def ask(*arguments: str) -> Any:
    """Return what the command writes, as JSON."""
    written = io.StringIO()
    call_command("pubsub", *arguments, "--json", stdout=written)
    return json.loads(written.getvalue())


def make_rows() -> None:
    notify_many([*map(jobs.Stored, range(3)), *map(jobs.Wide, range(2))])
    old = timezone.now() - timedelta(days=40)
    Notification.objects.filter(payload__kwargs__number=1).update(
        state="dead", attempts=6, created_at=old
    )
    Notification.objects.create(channel="nobody", payload={})


def test_stats() -> None:
    """Stats count rows by channel and state, with the age of the oldest, and who hears them."""
    make_rows()
    found = {(line["channel"], line["state"]): line for line in ask("stats")}
    stored = "tests.pubsub.site.jobs.Stored"
    assert {key: line["count"] for key, line in found.items()} == {
        (stored, "ready"): 2,
        (stored, "dead"): 1,
        ("tests.pubsub.site.jobs.Wide", "ready"): 1,
        ("tests.pubsub.site.jobs.Wide", "dead"): 1,
        ("nobody", "ready"): 1,
    }
    assert found[stored, "dead"]["attempts"] == 6
    assert found[stored, "dead"]["oldest"] > 40 * 86400 - 60
    assert [channel for (channel, _), line in found.items() if not line["heard"]] == ["nobody"]
    words = io.StringIO()
    call_command("pubsub", "stats", stdout=words)
    assert f"{stored} ready: 2, the oldest" in words.getvalue()
    assert "no listener here" in words.getvalue()


async def test_requeue() -> None:
    """Requeue makes dead rows ready, and wakes the worker that listens."""
    await bridged(make_rows)()
    # Wide is derived from Stored, so the worker handles its rows as well.
    async with working(jobs.Stored):
        await until(lambda: len(jobs.called) == 3)
        with pytest.raises(CommandError, match="name the rows"):
            await bridged(ask)("requeue")
        found = await bridged(ask)("requeue", "--channels", "tests.pubsub.site.jobs.Stored")
        assert found == {"requeued": 1}
        await until(lambda: len(jobs.called) == 4)
    assert await effects() == [0, 0, 1, 2]
    dead = await Notification.objects.aget(state="dead")
    assert await bridged(ask)("requeue", "--ids", f"{dead.pk}") == {"requeued": 1}
    assert (await Notification.objects.aget(pk=dead.pk)).attempts == 0


def test_prune() -> None:
    """Prune deletes dead rows that are old enough, and no others."""
    make_rows()
    assert ask("prune", "--all", "--days", "41") == {"deleted": 0}
    assert ask("prune", "--channels", "tests.pubsub.site.jobs.Wide") == {"deleted": 1}
    assert ask("prune", "--all") == {"deleted": 1}
    assert Notification.objects.count() == 4


def test_health(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Health exits with 1 for rows that wait too long, dead rows, and a worker that is not well."""
    assert ask("health", "--max-lag", "1", "--max-dead", "0")["problems"] == []
    make_rows()
    for limits, problem in (
        (["--max-lag", "0"], "a notification has been ready for"),
        (["--max-dead", "1"], "2 notifications are dead"),
    ):
        with pytest.raises(SystemExit) as end:
            call_command("pubsub", "health", *limits)
        assert end.value.code == 1
        assert problem in capsys.readouterr().out
    path = tmp_path / "health"
    good = {"time": time(), "state": "listening", "hubs": [], "error": None}
    path.write_text(json.dumps(good))
    assert ask("health", "--file", str(path))["problems"] == []
    for content, problem in (
        ({**good, "time": time() - 60}, "has written nothing for 60"),
        ({**good, "state": "lost", "hubs": [{"error": "refused"}]}, "is lost: refused"),
        ({"time": time() + 3600, "state": "listening"}, "has written nothing since a time in"),
        ({}, "no health file can be read"),
    ):
        path.write_text(json.dumps(content))
        with pytest.raises(SystemExit):
            call_command("pubsub", "health", "--file", str(path))
        assert problem in capsys.readouterr().out
