"""What the sweeps found, for pytest's terminal summary."""

from dataclasses import dataclass, field

# How many of the invariants that did not hold are printed.
SHOWN = 3


@dataclass
class Report:
    """How often an operation was cancelled or closed, and the invariants that did not hold then."""

    name: str
    # Its suspension points, when nothing cancels it.
    points: int = 0
    # How often it was cancelled at one point, and at two.
    once: int = 0
    twice: int = 0
    # How often it was closed, or dropped, instead; see `sweep.ENDS`.
    closed: int = 0
    broken: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        counts = (
            f"{self.name}: {self.points} points, cancelled {self.once} times at one and"
            f" {self.twice} times at two of them, closed {self.closed} times,"
            f" {len(self.broken)} invariants broken"
        )
        # The first tells most: others may only follow from it.
        return "\n    ".join([counts, *self.broken[:SHOWN]])


# Of all sweeps of this run.
reports: list[Report] = []

# What the load tests of this run say of themselves.
loads: list[str] = []
