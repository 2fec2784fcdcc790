"""Blocks that were taken away from generators: the blocks have ended, the generators go on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any, NamedTuple

from greenlet import getcurrent

from .frames import Frame, block_has_ended


class Taken(NamedTuple):
    """A block that has ended in the body of a generator, which has not left the block."""

    body: FrameType
    atomic: Any
    # Weak references to the asynchronous generators that the block is in.
    generators: list[Any]


# The blocks that were taken away; usually empty.
taken: list[Taken] = []


def take_away(frame: Frame) -> None:
    """Note that the block of *frame* ends before its generator has left it.

    The generator's statements in the rest of the block's body are refused.
    """
    if frame.body is not None:
        taken.append(Taken(frame.body, frame.atomic, list(frame.generators)))


def leaves_taken(atomic: Any, caller: FrameType | None) -> bool:
    """Return whether *caller* leaves a block of *atomic* that was taken away from it."""
    for index in reversed(range(len(taken))):
        if taken[index].body is caller and taken[index].atomic is atomic:
            del taken[index]
            return True
    return False


def check_not_taken() -> None:
    """Raise RuntimeError in a generator's block that was taken away from it."""
    gone = [each for each in taken if each.generators and not any(x() for x in each.generators)]
    for each in gone:
        # The event loop was closed and never closed the generator.
        taken.remove(each)
    bodies = {id(each.body) for each in taken}
    if not bodies.isdisjoint(stack_ids()):
        raise block_has_ended()


def stack_ids() -> Iterator[int]:
    """Yield the ids of the Python frames that the caller runs in, through all greenlets."""
    found: FrameType | None = sys._getframe(1)
    bridge = getcurrent()
    while found is not None:
        yield id(found)
        found = found.f_back
        if found is None and bridge.parent is not None:
            bridge = bridge.parent
            found = bridge.gr_frame
