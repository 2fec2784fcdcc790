"""What a listener has sent in one message with the removal of its notification.

A listener that ends with a statement of its own, such as a NOTIFY with an answer, costs an exchange
with the server for that. A package's listener hands it over here instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

# SQL, and its parameters.
Statement = tuple[str, Sequence[object]]

# The alias of the notification that is being handled, and the statements to send.
_open: ContextVar[tuple[str, list[Statement]] | None] = ContextVar("settling", default=None)


@contextmanager
def settling(alias: str, statements: list[Statement]) -> Iterator[None]:
    """Collect in *statements* what listeners that are called in the block hand over."""
    token = _open.set((alias, statements))
    try:
        yield
    finally:
        _open.reset(token)


def send_at_end(alias: str, statement: Statement) -> bool:
    """Have *statement* sent when the notification is removed that a listener is called with here.

    Return False where no leased notification of *alias* is being handled: the caller has to send
    it. It leaves the session as it was; it is tried again through an outage of the server, and not
    sent where the notification is to be handled again. Where it fails, the attempt has failed.
    """
    found = _open.get()
    if found is None or found[0] != alias:
        return False
    found[1].append(statement)
    return True
