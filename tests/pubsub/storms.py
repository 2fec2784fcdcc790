"""Storms: workers are killed, the server is restarted and stopped, under load.

    python -m tests.pubsub.storms                 # all of them, in their long forms
    python -m tests.pubsub.storms kills --kills 20 --notifications 2000 --processes 4
    python -m tests.pubsub.storms restarts --restarts 3
    python -m tests.pubsub.storms silence --seconds 12

Each says how many notifications were sent, lost, and handled twice: an `Effect` is what a listener
writes in the transaction that removes the notification.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread

from django.db import Error, connections

from tests.support.own_server import OwnServer

# How long a storm may take to calm down, seconds.
_CALM = 120.0


@dataclass
class Outcome:
    """What became of the notifications of a storm, by their numbers."""

    name: str
    acknowledged: set[int] = field(default_factory=set)
    # Whether the server had committed them nobody can say: the answer was lost.
    in_doubt: set[int] = field(default_factory=set)
    events: Counter[str] = field(default_factory=Counter)
    handled: Counter[int] = field(default_factory=Counter)
    left: list[tuple[int, str]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def lost(self) -> list[int]:
        """Those that were sent and neither handled nor kept."""
        kept = {number for number, _ in self.left}
        return sorted(self.acknowledged - self.handled.keys() - kept)

    @property
    def twice(self) -> list[int]:
        """Those that were handled more than once."""
        return sorted(number for number, count in self.handled.items() if count > 1)

    def __str__(self) -> str:
        events = ", ".join(f"{count} {name}" for name, count in self.events.items())
        return (
            f"{self.name}: {events}; {len(self.acknowledged)} sent and {len(self.in_doubt)} in"
            f" doubt, {len(self.handled)} handled, {len(self.lost)} lost, {len(self.twice)} twice,"
            f" {len(self.left)} left, in {self.seconds:.1f} s"
        )

    @property
    def is_good(self) -> bool:
        """Whether each was handled once."""
        return not (self.lost or self.twice or self.left)


class Storm:
    """Sends *count* notifications to a channel, and watches what becomes of them."""

    def __init__(self, name: str, count: int) -> None:
        self.outcome = Outcome(name)
        self.count = count
        self._began = time.monotonic()

    def send(self, pause: float = 0.0) -> None:
        """Send them one by one, through outages, too."""
        from pgbackend.pubsub import notify
        from tests.pubsub.site import jobs

        for number in range(self.count):
            try:
                notify(jobs.Wide, number=number, do="sleep 0.005")
            except Error:
                self.outcome.in_doubt.add(number)
                connections["default"].close()
                time.sleep(0.05)
            else:
                self.outcome.acknowledged.add(number)
            time.sleep(pause)
        connections["default"].close()

    def sending(self, pause: float = 0.0) -> Thread:
        """Send them in a thread, which is started."""
        thread = Thread(target=self.send, args=[pause])
        thread.start()
        return thread

    def calm(self) -> Outcome:
        """Wait until nothing is left, or nothing more happens, and return the outcome."""
        from pgbackend.pubsub import Notification
        from tests.pubsub.site.models import Effect

        deadline = time.monotonic() + _CALM
        while time.monotonic() < deadline:
            # The pool may have connections from before an outage.
            connections["default"].close()
            with suppress(Error):
                if not Notification.objects.exclude(state="dead").exists():
                    break
            time.sleep(0.05)
        outcome = self.outcome
        outcome.handled = Counter(Effect.objects.values_list("number", flat=True))
        outcome.left = [
            (payload["kwargs"]["number"], state)
            for payload, state in Notification.objects.values_list("payload", "state")
        ]
        outcome.seconds = time.monotonic() - self._began
        connections["default"].close()
        return outcome


def kills(count: int, processes: int, kills: int, *options: str) -> Outcome:
    """Kill worker processes at random while they handle *count* notifications.

    *options* are further ones of `listen`.
    """
    from tests.support.pubsub import Listen, wait_for

    storm = Storm("kills", count)
    thread = storm.sending()
    channel = "tests.pubsub.site.jobs.Wide"
    with Listen("--channels", channel, "--processes", f"{processes}", *options) as listen:
        wait_for(lambda: len(listen.children()) == processes)
        for _ in range(kills):
            time.sleep(random.uniform(0.05, 0.4))
            children = wait_for(listen.children)
            with suppress(ProcessLookupError):
                os.kill(random.choice(children), signal.SIGKILL)
                storm.outcome.events["kills"] += 1
        thread.join()
        outcome = storm.calm()
        listen.process.send_signal(signal.SIGTERM)
        outcome.events[f"exit codes {listen.code()}"] += 1
    return outcome


def _outages(
    storm: Storm, processes: int, happen: Callable[[Storm], None], pause: float
) -> Outcome:
    from tests.support.pubsub import Listen, wait_for

    thread = storm.sending(pause)
    channel = "tests.pubsub.site.jobs.Wide"
    with Listen("--channels", channel, "--processes", f"{processes}") as listen:
        wait_for(lambda: len(listen.children()) == processes)
        wait_for(lambda: len(storm.outcome.acknowledged) > 10)
        happen(storm)
        thread.join()
        outcome = storm.calm()
        listen.process.send_signal(signal.SIGTERM)
        outcome.events[f"exit codes {listen.code()}"] += 1
    return outcome


def restarts(count: int, processes: int, restarts: int, restart: Callable[[], None]) -> Outcome:
    """Restart the server while *count* notifications are sent and handled."""

    def happen(storm: Storm) -> None:
        for _ in range(restarts):
            time.sleep(0.5)
            restart()
            storm.outcome.events["restarts"] += 1

    return _outages(Storm("restarts", count), processes, happen, 0.002)


def silence(count: int, processes: int, seconds: float, postmaster: int) -> Outcome:
    """Stop all processes of the server for so many *seconds*, as a frozen machine would."""

    def children() -> set[int]:
        return set(
            map(int, Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split())
        )

    def happen(storm: Storm) -> None:
        stopped: set[int] = set()
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                # New ones, too. Not the postmaster: what started it takes its stop for its end.
                for pid in children() - stopped:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGSTOP)
                    stopped.add(pid)
                time.sleep(0.005)
        finally:
            for pid in stopped:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)
        storm.outcome.events[f"silences of {seconds:g} s"] += 1

    return _outages(Storm("silence", count), processes, happen, 0.002)


def main() -> int:
    """Run the storms that are named, all by default, on a server of their own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("storms", nargs="*", help="kills, restarts, silence")
    parser.add_argument("--notifications", type=int, default=2000)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="of silence")
    given = parser.parse_args()
    common = (given.notifications, given.processes)
    server = OwnServer()
    good = True
    try:
        server.set_up()
        from tests.pubsub.site.models import Effect

        for name in given.storms or ("kills", "restarts", "silence"):
            Effect.objects.all().delete()
            connections["default"].close()
            if name == "kills":
                outcome = kills(*common, given.kills)
            elif name == "restarts":
                outcome = restarts(*common, given.restarts, server.restart)
            else:
                outcome = silence(*common, given.seconds, server.postmaster)
            print(outcome, flush=True)
            good = good and outcome.is_good
    finally:
        server.close()
    return not good


if __name__ == "__main__":
    sys.exit(main())
