"""What is measured."""

from dataclasses import dataclass

# Messages a second where it is the latency that counts: far below what any peer can do.
RATE = 50.0


@dataclass(frozen=True)
class Latency:
    """From the call that sends a message to the handler's first line.

    Plain ones are sent by psycopg for all peers: what is measured begins with the NOTIFY.
    """

    name: str
    kind: str


@dataclass(frozen=True)
class Drain:
    """A worker without anything else to do handles so many *rows*, whose handlers do nothing.

    *beside*: with a transaction elsewhere that has begun before, and stays open.
    """

    name: str
    rows: int
    beside: bool = False
    rounds: int | None = None


@dataclass(frozen=True)
class Channels:
    """One process listens to so many plain channels."""

    name: str
    channels: int


@dataclass(frozen=True)
class Writers:
    """So many writers, each of which sends one stored message after the other."""

    name: str
    writers: int
    wake: str


Work = Latency | Drain | Channels | Writers

PLAIN = Latency("plain NOTIFY to handler", "plain")
STORED = Latency("stored, send to handler", "stored")
TRIGGER = Latency("stored by a trigger, INSERT to handler", "trigger")
DRAINS = {
    200: Drain("drain of 200", 200),
    10_000: Drain("drain of 10,000", 10_000),
    100_000: Drain("drain of 100,000", 100_000, rounds=3),
    1_000_000: Drain("drain of 1,000,000", 1_000_000, rounds=1),
}
BESIDE = Drain("drain of 100,000 beside a long transaction", 100_000, beside=True, rounds=3)
MANY = Channels("5,000 channels", 5_000)
WRITERS = [
    Writers(f"{count} writer{'s' * (count > 1)}, {wake}", count, wake)
    for count in (1, 8, 64)
    for wake in ("notify", "poll")
]

WORKS: list[Work] = [
    PLAIN,
    STORED,
    TRIGGER,
    *(drain for rows, drain in DRAINS.items() if rows < 1_000_000),
    BESIDE,
    MANY,
    *WRITERS,
]
FULL: list[Work] = [*WORKS, DRAINS[1_000_000]]
