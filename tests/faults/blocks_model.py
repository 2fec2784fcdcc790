"""The model of the fuzz of blocks: what tasks are told, and what has to be there then.

- A row is not there if a block around it raised, whatever raised: its body, or its end.
- It is there if it was acknowledged and no block around it raised.
- Of a transaction whose COMMIT was cancelled, or is `CommitInDoubt`, all is there or nothing.
- A hook of ``on_commit`` runs as a row would be there.

A child task that has no block of its own may write while the block that it was started in is being
left: its row belongs to that one or to the one around it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field


class Block:
    """One entered ``atomic``, by what its task was told.

    *inner* and *outer* are the blocks that it may be directly inside of: mostly the same one.
    """

    def __init__(self, here: Block | None, *, savepoint: bool) -> None:
        self.here = here
        self.inner = self.outer = standing(here)
        self.savepoint = savepoint
        self.body_ended = self.leaving = self.left = self.raised = False
        # Whether Django rolls it back without a word: a block without a savepoint failed in it.
        self.broken = False

    def entered(self) -> None:
        """Note that it was entered by now."""
        self.outer = standing(self.here, left_soon=True)

    def up(self, outer: bool = False) -> Iterator[Block]:
        """Yield it and those around it, as far in, or as far out, as may be."""
        block: Block | None = self
        while block is not None:
            yield block
            block = block.outer if outer else block.inner

    def breaks(self) -> None:
        """Note that Django rolls back what is around it."""
        block = self.inner
        while block is not None:
            block.broken = True
            if block is self.outer:
                return
            block = block.inner

    @property
    def is_root(self) -> bool:
        return self.inner is None

    @property
    def in_doubt(self) -> bool:
        """Whether it may have been committed although it raised."""
        return self.is_root and self.raised and self.body_ended


def standing(here: Block | None, *, left_soon: bool = False) -> Block | None:
    """Return the innermost block from *here* on that is not left; nor about to be, if *left_soon*.

    The outermost one, if all are about to be.
    """
    last = None
    while here is not None:
        if not here.left:
            last = here
            if not (left_soon and here.leaving):
                break
        here = here.inner
    return last


@dataclass
class Row:
    """A row, or a hook, and the blocks that it may be directly inside of."""

    name: str
    inner: Block | None
    outer: Block | None = None
    outcome: str = "begun"
    error: str = ""

    def may_not_be(self) -> bool:
        """Return whether it must not be there."""
        if self.outcome == "refused" or self.outer is None:
            return True
        return any(each.raised and not each.in_doubt for each in self.outer.up(outer=True))

    def must_be(self) -> bool:
        """Return whether it must be there, unless its transaction is in doubt."""
        if self.outcome != "acknowledged" or self.inner is None:
            return False
        return all(
            each.left and not each.broken and (not each.raised or each.in_doubt)
            for each in self.inner.up()
        )


@dataclass
class Report:
    """What came of a run."""

    seed: int
    counts: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        lines = [
            f"fuzz of blocks, seed {self.seed}, {self.seconds:.1f} s:"
            f" {self.counts['blocks raised']} of {self.counts['blocks']} blocks raised,"
            f" {self.counts['rows']} rows, {self.counts['kills']} connections killed,"
            f" {self.counts['in doubt']} of {self.counts['transactions']} transactions in doubt",
            f"  raised, but committed: {self.counts['wrong: committed']};"
            f" acknowledged, but not there: {self.counts['wrong: lost']};"
            f" hung: {self.counts['wrong: hung']}; other: {self.counts['wrong: other']}",
            f"  {', '.join(f'{name} {number}' for name, number in self.errors.most_common())}",
        ]
        return "\n".join(lines + [f"  {each}" for each in self.broken[:20]])
