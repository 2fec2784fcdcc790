"""Blocks that were revoked in generators: the blocks have ended, the generators go on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any, NamedTuple

from greenlet import getcurrent

from .frames import Frame, block_ended_error


class RevokedBlock(NamedTuple):
    """A block that has ended in the body of a generator, which has not left the block."""

    body: FrameType
    atomic: Any
    # Weak references to the asynchronous generators that the block is in.
    generators: list[Any]


# The blocks that have ended so; usually empty.
revoked_blocks: list[RevokedBlock] = []


def revoke(frame: Frame) -> None:
    """Note that the block of *frame* ends before its generator has left it.

    The generator's statements in the rest of the block's body are refused.
    """
    if frame.body is not None:
        revoked_blocks.append(RevokedBlock(frame.body, frame.atomic, list(frame.generators)))


def leaves_revoked(atomic: Any, caller: FrameType | None) -> bool:
    """Return whether *caller* leaves a block of *atomic* that was revoked."""
    for index in reversed(range(len(revoked_blocks))):
        if revoked_blocks[index].body is caller and revoked_blocks[index].atomic is atomic:
            del revoked_blocks[index]
            return True
    return False


def check_not_revoked() -> None:
    """Raise RuntimeError in a generator's block that was revoked."""
    gone = [
        each for each in revoked_blocks if each.generators and not any(x() for x in each.generators)
    ]
    for each in gone:
        # The event loop was closed and never closed the generator.
        revoked_blocks.remove(each)
    bodies = {id(each.body) for each in revoked_blocks}
    if not bodies.isdisjoint(stack_ids()):
        raise block_ended_error()


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
