"""What one transaction asks for: its isolation level, read only, deferrable.

psycopg sends BEGIN with the first statement of a transaction, and keeps its text on the connection.
So a transaction that asks for more has another text there until it ends, and no message of its own.

https://www.postgresql.org/docs/current/sql-set-transaction.html
"""

from __future__ import annotations

from typing import Any, NamedTuple

import psycopg
from django.db import transaction

from .attributes import BackendWrapper
from .leasing import Leasing

# The attribute of an `Atomic` with the `Characteristics` that it asks for, if it asks for any.
ASKED = "_pgbackend_asked"


class Characteristics(NamedTuple):
    """What a transaction asks for; None stands for what the connection is set to."""

    isolation: psycopg.IsolationLevel | None = None
    read_only: bool | None = None
    deferrable: bool | None = None
    # How the block is called in messages.
    name: str = "atomic()"

    def begin(self, connection: Any) -> bytes:
        """Return the BEGIN for a transaction on psycopg's *connection*."""
        isolation = _first(self.isolation, connection.isolation_level)
        read_only = _first(self.read_only, connection.read_only)
        deferrable = _first(self.deferrable, connection.deferrable)
        words = ["BEGIN"]
        if isolation is not None:
            words.append("ISOLATION LEVEL " + isolation.name.replace("_", " "))
        if read_only is not None:
            words.append("READ ONLY" if read_only else "READ WRITE")
        if deferrable is not None:
            words.append("DEFERRABLE" if deferrable else "NOT DEFERRABLE")
        return " ".join(words).encode()


def _first(asked: Any, found: Any) -> Any:
    return found if asked is None else asked


def begins(atomic: Any, asked: Characteristics) -> bool:
    """Return whether *atomic* begins a transaction; raise RuntimeError inside an open one.

    In the transaction that a TestCase has around each test, as with ``durable``, it may be nested.
    """
    wrapper = transaction.get_connection(atomic.using)
    if not isinstance(wrapper, BackendWrapper):
        raise RuntimeError(
            f"{asked.name} needs the backend pgbackend, and {wrapper.alias!r} has"
            f" {wrapper.settings_dict['ENGINE']!r}"
        )
    if not wrapper.in_atomic_block and wrapper.get_autocommit():
        return True
    blocks = wrapper.atomic_blocks
    if blocks and blocks[-1]._from_testcase:
        return False
    raise RuntimeError(
        f"{asked.name} has to be the outermost block, and a transaction is open on"
        f" {wrapper.alias!r}. Use it where that begins, for a view of ATOMIC_REQUESTS together with"
        " @transaction.non_atomic_requests; or use plain atomic() here"
    )


class Asking(Leasing):
    """Begins transactions that ask for more, and forgets what they asked for at their end."""

    def begin_as(self, asked: Characteristics) -> None:
        """Have the BEGIN that is due ask for *asked*: autocommit was turned off just now."""
        state = self.state
        # Reading `connection` would mark a lease's face as possibly changed.
        connection = state.connection if state.lease is None else state.lease.face
        connection._begin_statement = asked.begin(connection)
        state.begun_on = connection

    def forget_characteristics(self) -> None:
        """Let the next transaction on the connection begin as the connection is set to."""
        state = self.state
        connection, state.begun_on = state.begun_on, None
        if connection is not None:
            connection._begin_statement = b""

    def _set_autocommit(self, autocommit: bool) -> None:
        state = self.bridged_state()
        lease = None if state is None else state.lease
        if lease is None:
            super()._set_autocommit(autocommit)
        else:
            with self.wrap_database_errors:
                if lease.face.savepoint_due:
                    # A transaction with a savepoint has begun; psycopg refuses to leave it so.
                    lease.face.send_due()
                lease.face.autocommit = autocommit
        if autocommit and (state or self.state).begun_on is not None:
            # Before the hooks of `on_commit`, which may begin transactions.
            self.forget_characteristics()
