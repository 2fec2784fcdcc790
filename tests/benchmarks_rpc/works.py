"""What is measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """A client does it again and again; *kind* is the method of `client.Client` that does it once.

    *size* is how many reads that is.
    """

    name: str
    kind: str
    size: int = 1


THREAD = Work("one read after another, in a thread", "thread")
LOOP = Work("one read after another, on a loop", "loop")
MANY = Work("50 reads sent at once", "many", 50)
SINGLY = Work("100 reads, one after another", "singly", 100)
GATHERED = Work("100 reads gathered in one message", "gathered", 100)

WORKS = [THREAD, LOOP, MANY, SINGLY, GATHERED]
