"""Several worker processes under one parent, which starts them anew when they fail.

Children end with their parent, whatever ended it: they hold the read end of a pipe whose other end
only the parent has. A notification whose handler ends its process again and again is made dead.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic, sleep
from types import FrameType
from typing import Any

from django.db import DatabaseError, InterfaceError, connections

from ..pool.dedicated import backoff_delay
from .claiming import TABLE
from .marks import Marks, number_of
from .serving import AT_ONCE, FAILED, FINISHED, SIGNALS

logger = logging.getLogger("pgbackend.pubsub")

# How many processes a notification may end.
DEADLY = 5

# How long it waits after the first of them, seconds.
_FIRST_DELAY = 0.5

# A process that has lived so long, in seconds, is started anew without delay when it fails.
_LONG = 60.0

# The longest wait before a process is started anew, seconds.
_LONGEST_DELAY = 5.0

_INTERVAL = 0.05

# The row waits, so that others are handled, or is dead. Another process may have it by now.
_BLAME = f"""
UPDATE {TABLE} SET worker = NULL, lease_until = NULL, last_error = %(words)s,
    state = CASE WHEN %(dead)s THEN 'dead' ELSE 'delayed' END,
    run_after = CASE WHEN %(dead)s THEN NULL
        ELSE clock_timestamp() + make_interval(secs => %(delay)s) END
WHERE id = (
    SELECT id FROM {TABLE} WHERE id = %(id)s
        AND (state = 'ready' OR state = 'leased' AND worker LIKE %(worker)s)
    FOR UPDATE SKIP LOCKED
)
"""


@dataclass
class Child:
    """One worker process, and those that were there in its place."""

    number: int
    process: Any = None
    marks: Marks | None = None
    started: float = 0.0
    failures: int = 0
    # When to start it again, by `time.monotonic`; None: not.
    due: float | None = 0.0

    @property
    def code(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if isinstance(self.process, subprocess.Popen):
            return self.process.poll()
        return self.process.exitcode  # type: ignore[no-any-return]  # multiprocessing's


@dataclass
class Supervisor:
    """Runs *count* children until a signal, or until all have done what was asked for.

    *arguments* are those of `listen` for a child. *start_method* is "spawn", for a new Python, or
    "fork", in which *target* is called with the child's further arguments.
    """

    count: int
    arguments: Sequence[str]
    aliases: Sequence[str]
    graceful_timeout: float
    start_method: str = "spawn"
    restart: bool = True
    target: Callable[[list[str]], None] | None = None
    # Whether this process ends with the last of them: until then signals are for them.
    ends_process: bool = False
    signals: int = 0
    codes: list[int] = field(default_factory=list)

    def run(self) -> int:
        """Run the children, and return the exit code: the highest among theirs."""
        self._ended: Counter[tuple[int, int]] = Counter()
        self._read, self._write = os.pipe()
        children = [Child(number) for number in range(self.count)]
        before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        try:
            self._watch(children)
        finally:
            os.close(self._write)
            os.close(self._read)
            if not self.ends_process:
                for number, handler in before.items():
                    signal.signal(number, handler)
        return max(self.codes, default=FINISHED)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.signals += 1

    def _watch(self, children: list[Child]) -> None:
        sent, deadline = 0, 0.0
        while True:
            for child in children:
                if child.process is not None and child.code is not None:
                    self._note_end(child)
                if child.due is not None and child.due <= monotonic() and not self.signals:
                    self._start(child)
            running = [child for child in children if child.process is not None]
            if not running and (self.signals or all(child.due is None for child in children)):
                return
            if self.signals > sent:
                sent = self.signals
                deadline = monotonic() + (self.graceful_timeout if sent == 1 else 0.0) + 10.0
                for child in running:
                    os.kill(child.process.pid, signal.SIGTERM)
            if sent and monotonic() > deadline:
                for child in running:
                    os.kill(child.process.pid, signal.SIGKILL)
            sleep(_INTERVAL)

    def _start(self, child: Child) -> None:
        child.marks, fd = Marks.make()
        child.started, child.due = monotonic(), None
        given = ["--parent-fd", str(self._read), "--marks-fd", str(fd)]
        try:
            if self.start_method == "fork":
                child.process = self._fork(given)
            else:
                child.process = subprocess.Popen(
                    [*_python(), "-m", "django", "listen", "--worker", *self.arguments, *given],
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                    pass_fds=[self._read, fd],
                    # Ctrl-C in a terminal is for the parent, which passes it on.
                    start_new_session=True,
                )
        finally:
            os.close(fd)
        logger.info("started process %d of %d: %d", child.number, self.count, child.process.pid)

    def _fork(self, given: list[str]) -> Any:
        for each in connections.all(initialized_only=True):
            each.close()

        def main() -> None:
            os.setsid()
            os.close(self._write)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            assert self.target is not None
            self.target(given)

        process = multiprocessing.get_context("fork").Process(target=main)
        process.start()
        return process

    def _note_end(self, child: Child) -> None:
        code, process = child.code, child.process
        assert code is not None
        assert child.marks is not None
        child.process = None
        marked = child.marks.read()
        child.marks.close()
        if code == FINISHED or self.signals:
            self.codes.append(AT_ONCE if code < 0 else code)
            return
        how = f"by signal {-code}" if code < 0 else f"with code {code}"
        logger.error("process %d (%d) ended %s", child.number, process.pid, how)
        self._blame(marked, process.pid, how)
        if not self.restart:
            self.codes.append(FAILED if code < 0 else code)
            return
        if monotonic() - child.started > _LONG:
            child.failures = 0
        child.failures += 1
        child.due = monotonic() + backoff_delay(child.failures, longest=_LONGEST_DELAY)

    def _blame(self, marked: list[tuple[int, int]], pid: int, how: str) -> None:
        """Have notifications wait that were being handled when a process ended.

        One of which that is true too often is made dead. The end of a process counts as no attempt:
        it may come from outside.
        """
        for mark in marked:
            row_id = mark[1]
            self._ended[mark] += 1
            ended = self._ended[mark]
            values = {
                "id": row_id,
                "dead": ended >= DEADLY,
                "delay": backoff_delay(ended, _FIRST_DELAY),
                "words": f"process {pid} ended {how} while it handled this, the {ended}. time",
                "worker": f"%:{pid}:%",
            }
            for alias in self.aliases:
                if number_of(alias) != mark[0]:
                    continue
                try:
                    with connections[alias].cursor() as cursor:
                        cursor.execute(_BLAME, values)
                        changed = cursor.rowcount
                except (DatabaseError, InterfaceError) as error:
                    logger.error("notification %d cannot be put off: %s", row_id, error)
                else:
                    if changed and ended >= DEADLY:
                        logger.error("notification %d is dead now: %s", row_id, values["words"])
                finally:
                    connections[alias].close()


def _python() -> list[str]:
    """Return Python with the options of this process."""
    return [sys.executable, *(f"-W{option}" for option in sys.warnoptions)]
