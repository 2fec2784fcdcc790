"""Drive several bridged calls in one task, and send their statements together.

Each call runs in a bridge of its own, whose owner is the running task. A call that is about to send
a statement by the short way of `sql.direct` hands it over and is suspended. When all calls are
suspended so, one message takes their statements to the server, and each call goes on with its
result, to its end or to its next statement.

What a call does by other means (a cursor, an instrumented statement, a nested ``atomic``, any
``await``) it does alone: no other call goes on before it has ended, or hands over its next
statement. So nothing runs beside anything else on the task's connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Generator, Iterable
from contextvars import copy_context
from types import coroutine
from typing import Any

import psycopg
from django.db import connections
from greenlet import GreenletExit, getcurrent
from psycopg import capabilities
from psycopg.pq import ExecStatus

from ..bridge.greenlets import await_bridged, drive
from ..errors import NotRun
from ..sql.in_threads import ThreadLease
from ..sql.together import Handed, exchange
from ..tasks.lease import Lease
from ..tasks.membership import outlived_error
from ..tasks.state import ConnectionState
from ..tasks.transaction import Transaction
from ..wrapper.attributes import BackendWrapper
from .savepoints import Savepoints

# What `Driven.step` returns for a call that has ended.
_ENDED = object()


class Driven:
    """One of the calls that are driven together."""

    __slots__ = ("cancelled", "exception", "handed", "result", "steps", "transaction")

    def __init__(self, steps: Any) -> None:
        self.result: Any = None
        self.exception: BaseException | None = None
        # Whether a CancelledError is due in the call, instead of what it waits for.
        self.cancelled = False
        # The call in its greenlet, with the methods of a generator; None when it has ended.
        self.steps = steps
        # The statement that the call waits for, and the transaction that it belongs to.
        self.handed: Any = None
        self.transaction: Transaction | None = None

    def cancel(self) -> None:
        """Let the call end by a CancelledError where it next goes on."""
        self.cancelled = True

    def step(self, value: Any = None, error: BaseException | None = None) -> Any:
        """Let the call go on with *value* or *error*; return what it waits for, or _ENDED."""
        try:
            return self.steps.send(value) if error is None else self.steps.throw(error)
        except StopIteration as stop:
            self.result = stop.value
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as raised:
            self.exception = raised
        self.steps = None
        return _ENDED


def _in_own_context(function: Callable[[], Any]) -> Any:
    """Call *function* in a copy of the context, as a task would, and gather its statements."""
    # Do not name the greenlet; see `bridge.greenlets`.
    current: Any = getcurrent
    cached = getattr(current().parent, "cached_state", None)
    if cached is not None and cached[1] is current().gr_context:
        # The state that the driver has found is this call's, too: it is the same task's.
        current().cached_state = (cached[0], context := copy_context(), cached[2])
    else:
        context = copy_context()
    current().gr_context = context
    del context
    current().gathered = True
    try:
        return function()
    finally:
        current().gathered = False


class Driver:
    """Drives the calls of *functions* to their ends, in bridged code.

    *on_end* is called with each call when it has ended.
    """

    def __init__(
        self,
        functions: Iterable[Callable[[], Any]],
        on_end: Callable[[Driven], None],
        *,
        savepoints: bool,
    ) -> None:
        self._on_end = on_end
        self.calls = [Driven(self._steps(function)) for function in functions]
        self._suspended: list[Driven] = []
        # How many blocks were open in each state when the calls began.
        self._depths: dict[ConnectionState, int] = {}
        self._savepoints = Savepoints() if savepoints else None
        # Whether the calls send all their statements themselves.
        self._apart = not capabilities.has_pipeline()

    def _steps(self, function: Callable[[], Any]) -> Any:
        """Return a generator that runs *function* in a greenlet; it yields what that waits for."""
        return drive(_in_own_context, (function,), {})

    def _depth(self, state: ConnectionState) -> int:
        """Return how many blocks are open in *state*."""
        return len(state.frames)

    def run(self) -> None:
        """Run all calls; each keeps its result or exception.

        Raise CancelledError, after the calls have ended, if the task was cancelled meanwhile.
        """
        try:
            if self._savepoints is not None:
                self._savepoints.begin()
            self._run()
        finally:
            if self._savepoints is not None:
                self._savepoints.end()

    def _run(self) -> None:
        self._depths = {
            wrapper.state: self._depth(wrapper.state)
            for wrapper in connections.all(initialized_only=True)
            if isinstance(wrapper, BackendWrapper) and wrapper.bridge_enabled
        }
        try:
            for call in self.calls:
                self._go_on(call)
            while self._suspended:
                self._send()
        except asyncio.CancelledError:
            self._interrupt()
            raise
        finally:
            for call in self.calls:
                if call.steps is not None:
                    call.steps.close()

    def _interrupt(self) -> None:
        """Let the suspended calls end by a CancelledError of their own."""
        self._apart = True
        while self._suspended:
            call = self._suspended.pop()
            try:
                self._go_on(call, error=asyncio.CancelledError())
            except asyncio.CancelledError:
                # A further cancellation: the others have to end, too.
                continue

    def _go_on(self, call: Driven, value: Any = None, error: BaseException | None = None) -> None:
        """Let *call* go on until it is suspended, or has ended."""
        call.handed = None
        if call.cancelled:
            call.cancelled, error = False, asyncio.CancelledError()
        if self._savepoints is None:
            self._go_on_alone(call, value, error)
        else:
            with self._savepoints.around(call):
                self._go_on_alone(call, value, error)

    def _go_on_alone(self, call: Driven, value: Any, error: BaseException | None) -> None:
        interruption: BaseException | None = None
        waiting = call.step(value, error)
        while waiting is not _ENDED:
            if type(waiting) is Handed:
                if self._may_suspend(waiting.lease):
                    call.handed, call.transaction = waiting, waiting.lease.state.transaction
                    self._suspended.append(call)
                    return
                # The call sends it itself.
                waiting = call.step(None)
                continue
            try:
                value = await_bridged(_passed_up(waiting))
            except (GeneratorExit, GreenletExit):
                raise
            except BaseException as raised:
                if isinstance(raised, asyncio.CancelledError):
                    interruption = raised
                waiting = call.step(error=raised)
            else:
                waiting = call.step(value)
        self._on_end(call)
        if interruption is not None and isinstance(call.exception, asyncio.CancelledError):
            raise interruption

    def _may_suspend(self, lease: Lease | ThreadLease) -> bool:
        """Return whether a statement on *lease* may wait for those of other calls.

        Outside a transaction each statement is one of its own; and the statements of other calls
        must not come into a block that a call has entered.
        """
        return (
            not self._apart
            and not lease.face._autocommit
            and self._depth(lease.state) <= self._depths.get(lease.state, 0)
        )

    def _send(self) -> None:
        """Send the statements of the suspended calls, and let the calls go on."""
        by_face: dict[Any, list[Driven]] = {}
        # Nothing is sent for those that were cancelled.
        outcomes: list[tuple[Driven, Any]] = []
        for call in self._suspended:
            if call.cancelled:
                outcomes.append((call, None))
            else:
                by_face.setdefault(call.handed.lease.face, []).append(call)
        for face, calls in by_face.items():
            outcomes += zip(calls, self._outcomes(face, calls), strict=True)
        # Those that have yet to go on come after those that are suspended again.
        self._suspended, waiting = [], deque(outcomes)
        try:
            while waiting:
                call, outcome = waiting.popleft()
                if isinstance(outcome, BaseException):
                    self._go_on(call, error=outcome)
                else:
                    self._go_on(call, outcome)
        finally:
            self._suspended += [call for call, _ in waiting]

    def _outcomes(self, face: Any, calls: list[Driven]) -> list[Any]:
        """Return the results or errors of the statements of *calls*, all on *face*.

        None: the call has to send its statement itself.
        """
        if len(calls) == 1 and self._savepoints is None:
            return [None]
        try:
            self._check_turn(calls)
            with face.lock:
                queries = [call.handed.query for call in calls]
                savepoints = self._savepoints is not None
                results = face.wait(exchange(face, queries, savepoints=savepoints))
        except Exception as error:
            return [error, *(_not_run(error) for _ in calls[1:])]
        outcomes: list[Any] = []
        failed: BaseException | None = None
        for result in results:
            if result is None:
                outcomes.append(_not_run(failed))
            elif result.status == ExecStatus.FATAL_ERROR:
                failed = psycopg.errors.error_from_result(result, encoding=face.pgconn._encoding)
                face.note_read_only(failed)
                outcomes.append(failed)
            else:
                outcomes.append(result)
        return outcomes

    def _check_turn(self, calls: list[Driven]) -> None:
        """Wait for the task's turn in the transaction; raise RuntimeError if that has ended.

        Other tasks may have used the transaction since the calls were suspended.
        """
        # They usually are all in one transaction, on one lease.
        for lease, transaction in {(call.handed.lease, call.transaction) for call in calls}:
            if transaction is None or (
                transaction.wrapper.state_in_turn(lease.state) is not lease.state
                or lease.state.transaction is not transaction
                or transaction.ended
                or not lease.on_loan
            ):
                raise outlived_error("task")


@coroutine
def _passed_up(waiting: Any) -> Generator[Any, Any, Any]:
    """Wait for what a call has yielded to the event loop."""
    return (yield waiting)


def _not_run(cause: BaseException | None) -> NotRun:
    error = NotRun(
        "this statement was not run: another one, which was gathered with it, failed before. See"
        " 'savepoints' of gather()"
    )
    error.__cause__ = cause
    return error
