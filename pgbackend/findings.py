"""What the detector has found lately, for those who look: the last `KEPT` of this process."""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from time import time

# How many are kept.
KEPT = 20


@dataclass(frozen=True)
class Finding:
    """A function that held an event loop for too long."""

    # The function, its file and line.
    place: str
    # How long it held the loop, seconds.
    seconds: float
    # When that was noted, by `time.time`.
    at: float


_findings: deque[Finding] = deque(maxlen=KEPT)

# A forked child has not held its parent's loop.
os.register_at_fork(after_in_child=_findings.clear)


def note(place: str, seconds: float, *, goes_on: bool = False) -> None:
    """Note a finding; with *goes_on* in place of the last one of the same place."""
    if goes_on:
        for each in reversed(_findings.copy()):
            if each.place == place:
                # Another thread may have noted so many others meanwhile.
                with suppress(ValueError):
                    _findings.remove(each)
                break
    _findings.append(Finding(place, seconds, time()))


def latest() -> list[Finding]:
    """Return what was found lately, the latest first; in any thread."""
    return list(reversed(_findings.copy()))
