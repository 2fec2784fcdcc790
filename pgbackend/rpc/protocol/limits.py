"""How much a message may be, ask and take."""

from __future__ import annotations

from dataclasses import dataclass, fields

# Values are read and written by recursion, which needs a frame or two for each level.
DEEPEST = 128

# Digits of an integer and of a decimal, and the size of a decimal's exponent: converting between
# text and numbers takes time that grows with their square.
DIGITS = 1000


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of one service, or of one client for what it is answered.

    Sizes are in bytes of UTF-8, times in seconds. `TooLarge`, `TooDeep`, `TooManyNodes`,
    `TooManyRows`, `TooManyAffected` and `BatchTooLarge` name the limit in their details.
    Raise ValueError for a limit that is not above zero, and for *max_depth* above 128.
    """

    # A whole message, its seal included.
    max_bytes: int = 1024 * 1024
    # A whole answer.
    max_answer_bytes: int = 16 * 1024 * 1024
    # Arrays and objects of JSON inside each other, in a whole body.
    max_depth: int = 100
    # Operations, ends, children of Q, expressions, references, and very wide numbers, in a message.
    max_nodes: int = 2000
    # Rows of one answer, in all of its results.
    max_rows: int = 1000
    # Trees of one message.
    max_batch: int = 200
    # Rows that one write may change.
    max_affected: int = 1000
    # One statement in the server.
    statement_timeout: float = 10.0
    # From a message's time to its deadline.
    max_deadline: float = 3600.0
    # A message's time ahead of the server's clock.
    max_skew: float = 60.0
    # Messages of one key and principal that wait for changes, in one process.
    max_subscriptions: int = 100
    # Seconds that one message waits for changes; a longer wait ends then without an answer.
    max_wait: float = 30.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(f"{field.name} is {getattr(self, field.name)}; it must be above 0")
        if self.max_depth > DEEPEST:
            raise ValueError(f"max_depth is {self.max_depth}; it must be at most {DEEPEST}")
