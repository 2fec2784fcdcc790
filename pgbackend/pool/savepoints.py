"""Commands that are sent with the next statement of their transaction.

Savepoints, see `transaction.deferred_savepoint`, and what a package has sent so; see
`sql.direct.Due`. Each command is one statement, on one line.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import generators
from psycopg.pq import TransactionStatus

from .session_reset import failure

if TYPE_CHECKING:
    from psycopg.abc import PQGen


def begin_and_send_due(face: Any, start: Callable[[], PQGen[None]]) -> PQGen[None]:
    """Send a BEGIN and the commands that are due; *start* sends a BEGIN alone.

    Both are one message, unless the connection is in a pipeline.
    """
    if (
        face.savepoint_due
        and face._pipeline is None
        and not face._autocommit
        and face.pgconn.transaction_status == TransactionStatus.IDLE
    ):
        yield from send_due(face, face._get_tx_start_command())
        return
    yield from start()
    if face.savepoint_due:
        yield from send_due(face)


def send_due(face: Any, *before: bytes) -> PQGen[None]:
    """Send the commands in *face*'s ``savepoint_due``, which is empty then; raise if one fails.

    *before* goes in front of them.

    In a pipeline they wait for its next synchronization, as everything there does.
    """
    commands, face.savepoint_due = face.savepoint_due, ()
    try:
        if face._pipeline is not None:
            for command in commands:
                yield from face._exec_command(command)
        else:
            yield from _send(face, (*before, *commands))
    except BaseException:
        face.savepoint_due = commands
        raise


def _send(face: Any, commands: Sequence[bytes]) -> PQGen[None]:
    # One message, whatever the number of commands.
    face.pgconn.send_query(b"; ".join(commands))
    results = yield from generators.execute(face.pgconn)
    failed = failure(results)
    if failed is not None:
        raise psycopg.errors.error_from_result(failed, encoding=face.pgconn._encoding)


def send(face: Any, commands: Sequence[bytes]) -> None:
    """Send *commands* in one message, waiting through the bridge; raise if one fails."""
    with face.lock:
        face.wait(_send(face, commands))
