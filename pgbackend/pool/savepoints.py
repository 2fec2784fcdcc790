"""Savepoints that are sent with the next statement; see `transaction.deferred_savepoint`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import generators

from .session_reset import failure

if TYPE_CHECKING:
    from psycopg.abc import PQGen


def send_due(face: Any) -> PQGen[None]:
    """Send the commands in *face*'s ``savepoint_due``, which is empty then; raise if one fails.

    In a pipeline they wait for its next synchronization, as everything there does.
    """
    commands, face.savepoint_due = face.savepoint_due, ()
    try:
        if face._pipeline is not None:
            for command in commands:
                yield from face._exec_command(command)
        else:
            yield from _send(face, commands)
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
