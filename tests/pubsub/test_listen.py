"""The command `listen`: its ends, its exit codes, and its processes."""

import json
import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.db import transaction

from pgbackend.pubsub import Notification, notify_many, send
from pgbackend.pubsub.marks import number_of
from pgbackend.pubsub.processes import Supervisor
from tests.pubsub.site import jobs
from tests.pubsub.site.models import Effect
from tests.support.pubsub import Listen, is_alive, wait_for
from tests.support.server import Server

pytestmark = pytest.mark.process

STORED = ("--channels", "tests.pubsub.site.jobs.Stored")
PATIENT = ("--channels", "tests.pubsub.site.jobs.Patient")
LEASED = ("--channels", "tests.pubsub.site.jobs.Leased")
# Children that are forked from their parent are there at once. A test below is about both ways.
FORKED = ("--worker-start-method", "fork", "--processes")


def effects() -> list[int]:
    return sorted(Effect.objects.values_list("number", flat=True))


def states() -> list[tuple[str, int]]:
    return list(Notification.objects.order_by("id").values_list("state", "attempts"))


def is_claimed() -> bool:
    """Return whether a worker has the first row."""
    with transaction.atomic():
        first = Notification.objects.filter(pk=1)
        return first.exists() and not first.select_for_update(skip_locked=True)


def listening(path: Path) -> bool:
    return path.exists() and json.loads(path.read_text())["state"] == "listening"


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_sigterm(loop: str, tmp_path: Path, server: Server) -> None:
    """At SIGTERM what is being handled may end, and the exit code is 0."""
    health = tmp_path / "health"
    # The handler of the first waits for a lock, in a claim that the second may be in, too.
    wait = "sql SELECT pg_advisory_xact_lock_shared(7)"
    notify_many([jobs.Patient(1, wait), jobs.Patient(2), jobs.Patient(3)])
    server.all("SELECT pg_advisory_lock(7)")
    try:
        with Listen(*PATIENT, "--loop", loop, "--health-file", str(health)) as listen:
            wait_for(lambda: listening(health))
            wait_for(is_claimed)
            listen.process.send_signal(signal.SIGTERM)
            wait_for(lambda: "ending" in listen.text())
            server.all("SELECT pg_advisory_unlock(7)")
            assert listen.code() == 0
    finally:
        server.all("SELECT pg_advisory_unlock_all()")
    assert not health.exists()
    assert effects() == [1]
    assert states() == [("ready", 0)] * 2


def test_log() -> None:
    """The log says in words what is listened to, and what was done."""
    with Listen(*STORED, settings="tests.settings") as listen:
        wait_for(lambda: "listening to tests.pubsub.site.jobs.Stored" in listen.text())
        notify_many([jobs.Stored(1), jobs.Stored(2)])
        wait_for(lambda: effects() == [1, 2])
        listen.process.send_signal(signal.SIGTERM)
        assert listen.code() == 0
        assert "ending: 2 handled" in listen.text()
    with Listen(*STORED, "--batch") as listen:
        assert listen.code() == 0
        assert "done: nothing was handled" in listen.text()


def test_graceful_timeout() -> None:
    """What does not end in time is cancelled and given back, and the exit code says so."""
    notify_many([jobs.Leased(1, "sleep 60")])
    with Listen(*LEASED, "--graceful-timeout", "0.2") as listen:
        wait_for(effects)
        listen.process.send_signal(signal.SIGTERM)
        assert listen.code() == 3
    assert states() == [("ready", 0)]


def test_second_signal() -> None:
    """A second signal ends the process at once; what it handled is given back."""
    notify_many([jobs.Leased(1, "sleep 60")])
    with Listen(*LEASED) as listen:
        wait_for(effects)
        listen.process.send_signal(signal.SIGINT)
        wait_for(lambda: "ending" in listen.text())
        listen.process.send_signal(signal.SIGINT)
        assert listen.code() == 4
    assert states() == [("ready", 0)]


@pytest.mark.process
@pytest.mark.parametrize("arguments", [[], ["--processes", "1"]], ids=["one", "parent"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["term", "int"])
def test_many_signals(arguments: list[str], number: int) -> None:
    """However many signals come, until the process has ended, its exit code is a documented one."""
    notify_many([jobs.Leased(1, "sleep 60")])
    with Listen(*LEASED, *arguments, settings="tests.settings") as listen:
        wait_for(effects)
        while listen.process.poll() is None:
            listen.process.send_signal(number)
            time.sleep(0.002)
        assert listen.code() == 4, listen.text()
        assert "Traceback" not in listen.text()
    assert states() == [("ready", 0)]


@pytest.mark.load
def test_blocked_loop() -> None:
    """A handler that holds the event loop does not keep the process from ending."""
    notify_many([jobs.Leased(1, "block 60")])
    with Listen(*LEASED, "--graceful-timeout", "0") as listen:
        wait_for(lambda: Notification.objects.filter(state="leased").exists())
        time.sleep(0.2)
        listen.process.send_signal(signal.SIGTERM)
        assert listen.code() == 4
    assert states() == [("leased", 1)]


def test_batch() -> None:
    """`--batch` handles what is there and ends; so does `--max-notifications`."""
    notify_many([jobs.Stored(number) for number in range(20)])
    with Listen(*STORED, "--max-notifications", "5") as listen:
        assert listen.code() == 0
    assert len(effects()) == 5
    with Listen(*STORED, "--batch", "--recover", *FORKED, "2") as listen:
        assert listen.code() == 0
    assert effects() == list(range(20))


SETTINGS = (
    "SET search_path TO pg_catalog",
    "SET ROLE pg_monitor",
    "CREATE TEMP TABLE pgpubsub_notification (id bigint) ON COMMIT DROP",
    "SET SESSION AUTHORIZATION pg_monitor",
)


def test_djangos_own_backend() -> None:
    """A synchronous project runs handlers of both kinds, each in the claim's transaction."""
    notify_many([jobs.Stored(1), jobs.Stored(2, "fail"), jobs.StoredSync(3), jobs.Stored(4)])
    notify_many([jobs.StoredSync(5, "swallow"), jobs.StoredSync(6, "fail"), jobs.Leased(7)])
    notify_many([jobs.Brief(8, "sleep 9"), jobs.Ordered(9, "", "a"), jobs.Ordered(10, "", "a")])
    with Listen(settings="tests.pubsub.site.settings_django") as listen:
        wait_for(lambda: states() == [("dead", 3), ("dead", 3), ("dead", 3), ("dead", 1)])
        notify_many([jobs.PlainSync(11), jobs.Plain(12), jobs.Stored(13)])
        wait_for(lambda: effects() == [1, 3, 4, 7, 9, 10, 11, 12, 13])
        notify_many([jobs.PlainSync(20, f"sql {text}") for text in SETTINGS])
        notify_many([jobs.StoredSync(21, f"sql {text}") for text in SETTINGS])
        notify_many([jobs.StoredSync(22, "sql COMMIT"), jobs.StoredSync(23, "sql ROLLBACK")])
        notify_many([jobs.StoredSync(24), jobs.PlainSync(25)])
        wait_for(lambda: effects() == [1, 3, 4, 7, *range(9, 14), *[20] * 4, *[21] * 4, 24, 25])
        wait_for(lambda: len(states()) == 6)
        # That it was killed is not what its listener did.
        notify_many([jobs.StoredSync(number, "killed-until 2") for number in range(30, 40)])
        wait_for(lambda: effects()[-10:] == list(range(30, 40)))
        listen.process.send_signal(signal.SIGTERM)
        assert listen.code() == 0


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_children_end_with_their_parent(method: str) -> None:
    """Children whose parent was killed end by themselves."""
    with Listen(*STORED, "--processes", "2", "--worker-start-method", method) as listen:
        children = wait_for(lambda: len(found := listen.children()) == 2 and found)
        notify_many([jobs.Stored(1)])
        wait_for(effects)
        listen.process.kill()
        wait_for(lambda: not any(map(is_alive, children)))


def test_children_are_started_anew() -> None:
    """A child that was killed is replaced; what it handled is handled by another one."""
    notify_many([jobs.Stored(number, "sleep 0.05") for number in range(40)])
    with Listen(*STORED, *FORKED, "2", "--graceful-timeout", "5") as listen:
        wait_for(effects)
        first = listen.children()
        os.kill(first[0], signal.SIGKILL)
        wait_for(lambda: effects() == list(range(40)))
        wait_for(lambda: len(listen.children()) == 2)
        assert len({*first, *listen.children()}) == 3
        listen.process.send_signal(signal.SIGTERM)
        assert listen.code() == 0
        assert "by signal 9" in listen.text()


def test_rows_of_two_databases() -> None:
    """A row that ended a process is not taken for the row with the same number elsewhere."""
    row = send(jobs.Stored(1))
    assert row is not None
    supervisor = Supervisor(1, [], ["default"], 1.0)
    supervisor._ended = Counter()
    supervisor._blame([(number_of("other"), row)], 1, "by signal 9")
    assert states() == [("ready", 0)]
    supervisor._blame([(number_of("default"), row)], 1, "by signal 9")
    assert states() == [("delayed", 0)]


def test_deadly_row() -> None:
    """A row whose handler ends its process waits, and the others are handled."""
    notify_many([jobs.Stored(n, "die" if n == 3 else "") for n in range(10)])
    with Listen(*STORED, *FORKED, "1") as listen:
        wait_for(lambda: effects() == [0, 1, 2, *range(4, 10)])
        listen.process.send_signal(signal.SIGTERM)
        listen.code()
    assert "ended by signal 9 while it handled this" in Notification.objects.get().last_error


@pytest.mark.load
def test_deadly_row_dies() -> None:
    """Such a row is made dead when it has ended so many processes."""
    notify_many([jobs.Stored(3, "die")])
    with Listen(*STORED, *FORKED, "1") as listen:
        while [state for state, _ in states()] != ["dead"]:
            assert listen.process.poll() is None
            time.sleep(0.1)
        listen.process.send_signal(signal.SIGTERM)
        listen.code()


def test_no_restart() -> None:
    """With `--no-restart-on-failure` the end of the last child is the end of the parent."""
    notify_many([jobs.Stored(1, "die")])
    with Listen(*STORED, *FORKED, "1", "--no-restart-on-failure") as listen:
        assert listen.code() == 1
    assert states() == [("delayed", 0)]


def test_wrong_arguments() -> None:
    """What cannot be is told before anything starts."""
    with pytest.raises(CommandError, match=r"There is no channel 'no\.such\.Channel'"):
        call_command("listen", channels=["no.such.Channel"])
    with pytest.raises(CommandError, match="'0' is no whole number"):
        call_command("listen", "--processes", "0")
    with pytest.raises(CommandError, match="leave out --processes"):
        call_command("listen", "--worker", "--processes", "2")
