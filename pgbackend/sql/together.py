"""Statements of several calls that are sent together, in libpq's pipeline mode.

A call in a bridge that is `gathered` hands the statement that it is about to send to whoever drives
the call, and is suspended; see `futures.driving`. The driver sends the statements of all its calls
in one message, and gives each call its result.

https://www.postgresql.org/docs/current/libpq-pipeline-mode.html
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
from greenlet import getcurrent
from psycopg import generators
from psycopg.pq import ConnStatus, ExecStatus, TransactionStatus

from ..bridge.greenlets import check_bridged
from ..tasks.lease import Lease
from .in_threads import ThreadFace, ThreadLease

if TYPE_CHECKING:
    from collections.abc import Sequence

    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGconn, PGresult

    from ..pool.face import BridgedConnection

_FATAL = ExecStatus.FATAL_ERROR
_IDLE = TransactionStatus.IDLE

_NAME = b"pgbackend_gathered"

# How many statements are sent again, at least, when the one before them has failed.
_AGAIN = 16

# The savepoint of one statement, or of what a call sends by other means.
SAVE = b"SAVEPOINT " + _NAME
RELEASE = b"RELEASE SAVEPOINT " + _NAME
UNDO = (b"ROLLBACK TO SAVEPOINT " + _NAME, RELEASE)


class Handed(NamedTuple):
    """A statement that a call has handed to its driver, to be sent on the held *lease*."""

    lease: Lease | ThreadLease
    query: bytes


def hand_to_driver(lease: Lease | ThreadLease, query: bytes) -> PGresult | None:
    """Hand a statement to the driver of the running call; return its result.

    None: the call has to send the statement itself. Raise the error that the driver raises.
    """
    # Do not name the greenlet itself; see `bridge.greenlets`.
    if getattr(getcurrent(), "call_closed", False):
        check_bridged()
    parent: Any = getcurrent().parent
    result: PGresult | None = parent.switch(Handed(lease, query))
    return result


def exchange(
    face: BridgedConnection | ThreadFace, queries: Sequence[bytes], *, savepoints: bool = False
) -> PQGen[list[PGresult | None]]:
    """Send *queries* together in a transaction, behind a BEGIN that is due; return their results.

    The result of a failed query is its error; that of a query that was not run is None. With
    *savepoints* each query has one: the effect of a failed query is undone, and those behind it
    are sent again, no more of them than a few times those that were run last, so that all together
    are sent a few times at most. Raise psycopg's error if BEGIN or a savepoint fails.
    """
    pgconn = face.pgconn
    if pgconn.status != ConnStatus.OK:
        # As psycopg's cursors say; libpq would only say that there is no pipeline mode.
        raise psycopg.OperationalError("the connection is lost")
    found: list[PGresult | None] = [None] * len(queries)
    before = due = face.savepoint_due
    if pgconn.transaction_status == _IDLE:
        before, face.owes_begin = (face._get_tx_start_command(), *due), False
    first = len(before)
    # Whether a cancellation stops these queries: then nothing is sent again.
    was_stopped, face.was_stopped = face.was_stopped, False
    start, end = 0, len(queries)
    try:
        while True:
            commands: list[tuple[bytes, int | None]] = [(command, None) for command in before]
            for index in range(start, end):
                if savepoints:
                    commands += (SAVE, None), (queries[index], index), (RELEASE, None)
                else:
                    commands.append((queries[index], index))
            results = yield from _pipelined(pgconn, [command for command, _ in commands])
            for (_, place), result in zip(commands, results, strict=False):
                if place is not None:
                    found[place] = result
            last = results[-1]
            if due and face.savepoint_due == due and not isinstance(face, ThreadFace):
                if len(results) > first:
                    face.due_was_sent()
                else:
                    face.drop_due_if_broken()
            run, before = end, ()
            if last.status == _FATAL:
                failed = commands[len(results) - 1][1]
                if failed is None:
                    raise psycopg.errors.error_from_result(last, encoding=pgconn._encoding)
                if not savepoints or pgconn.status != ConnStatus.OK:
                    return found
                run, before = failed + 1, UNDO
            elif end == len(queries):
                return found
            if face.was_stopped:
                return found
            start, end = run, min(len(queries), run + max(_AGAIN, 4 * (run - start)))
    finally:
        face.was_stopped |= was_stopped


def _pipelined(pgconn: PGconn, commands: list[bytes]) -> PQGen[list[PGresult]]:
    """Send *commands* in one pipeline; return their results, up to the first error."""
    results: list[PGresult] = []
    pgconn.enter_pipeline_mode()
    try:
        for command in commands:
            pgconn.send_query_params(command, None)
        pgconn.pipeline_sync()
        yield from generators.send(pgconn)
        for _ in commands:
            result = yield from generators.fetch(pgconn)
            assert result is not None
            if not results or results[-1].status != _FATAL:
                results.append(result)
            # What ends the results of one command.
            yield from generators.fetch(pgconn)
        # What answers the synchronization.
        yield from generators.fetch(pgconn)
    except psycopg.OperationalError:
        # The server says why it ends the connection before it does.
        if not results or results[-1].status != _FATAL:
            raise
    finally:
        # A lost connection cannot leave the mode.
        with suppress(psycopg.Error):
            pgconn.exit_pipeline_mode()
    return results
