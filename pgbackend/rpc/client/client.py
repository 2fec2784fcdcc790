"""The client: it seals what is asked, sends it, and opens what is answered."""

from __future__ import annotations

import threading
from asyncio import CancelledError
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from ...futures.result import Future
from ..protocol import nodes
from ..protocol.answers import open_answer
from ..protocol.errors import Malformed, NotRun
from ..protocol.keys import Keys
from ..protocol.limits import Limits
from ..protocol.messages import message_of, seal_message
from ..transports.base import Transport, send_message
from .calls import Call, Later, index_of
from .querysets import Delayed, QuerySet, as_call
from .results import Row, plain


class Client:
    """A service, by the *transport* to it and the *keys* that both know.

    *keys* are `Keys`, or a dictionary of secrets by id whose first one seals. *principal* is for
    whom it asks, *name* what the service's log calls it. *timeout* is the time in seconds after
    which an answer is of no use. *limits* are for what is sent and what is answered.
    """

    def __init__(
        self,
        transport: Transport,
        keys: Keys | Mapping[str, str],
        *,
        principal: str | None = None,
        name: str | None = None,
        timeout: float = 10.0,
        limits: Limits | None = None,
    ) -> None:
        self.transport = transport
        self.keys = keys if isinstance(keys, Keys) else Keys.from_settings({"KEYS": keys})
        self.principal = principal
        self.name = name
        self.timeout = timeout
        self.limits = limits or Limits()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.transport!r} principal={self.principal!r}>"

    def model(self, name: str, *, urgent: bool = False) -> QuerySet:
        """Return all rows of the model *name*, "app.Model", as a queryset.

        What is *urgent* goes before others where the transport has a queue.
        """
        return QuerySet(self, nodes.Tree(name), urgent)

    def describe(self) -> Call[Any]:
        """Ask what the principal may do with all models, as JSON Schema."""
        return Call(self, nodes.Tree("", end=nodes.Op("describe")), plain)

    def gather(
        self,
        *asked: Any,
        atomic: bool = False,
        dry: bool = False,
        return_exceptions: bool = False,
        idempotency: str | None = None,
        timeout: float | None = None,
    ) -> Future[list[Any]]:
        """Return a future of all results of *asked*, querysets and calls, sent as one message.

        They are run in order. With *atomic* all are run in one transaction; with *dry* all is
        rolled back. With *return_exceptions* an error stands where the result would. The same
        *idempotency* names the same writes when they are sent again. *timeout* is in seconds. They
        are cancelled together. Raise ValueError for a call of another client.
        """
        calls = [as_call(each) for each in asked]
        if any(call.client is not self for call in calls):
            raise ValueError("calls of several clients cannot be sent in one message")

        def start(gathered: Future[list[Any]]) -> None:
            # Those that were sent already, by themselves, are waited for.
            unsent = [call for call in dict.fromkeys(calls) if call.claim() is not None]
            if atomic and len(unsent) < len(calls):
                _end(unsent, ValueError("a call that was sent already cannot be gathered"))
            elif unsent:
                self.send(unsent, atomic=atomic, dry=dry, idempotency=idempotency, timeout=timeout)
            _when_all_ended(calls, lambda: end(gathered))

        def end(gathered: Future[list[Any]]) -> None:
            found = [_outcome(call) for call in calls]
            errors = [each for each in found if isinstance(each, BaseException)]
            if errors and not return_exceptions:
                # Of an atomic message the others were not run because of one.
                causes = [each for each in errors if not isinstance(each, NotRun)]
                gathered.set_exception((causes or errors)[0])
            else:
                gathered.set_result(found)

        def cancel() -> None:
            for call in calls:
                call.cancel()

        return Future.pending(start=start, on_cancel=cancel)

    def send(
        self,
        calls: Sequence[Call[Any]],
        *,
        atomic: bool = False,
        dry: bool = False,
        idempotency: str | None = None,
        timeout: float | None = None,
    ) -> None:
        """Send *calls*, which nobody else sends, as one message; each ends when it is answered."""
        try:
            message = message_of(
                [call.tree for call in calls],
                timeout=self.timeout if timeout is None else timeout,
                principal=self.principal,
                name=self.name,
                atomic=atomic,
                dry=dry,
                idempotency=idempotency,
            )
            wire = seal_message(
                message, self.keys, self.limits, lambda value: _sent_as(value, calls)
            )
            urgent = any(call.urgent for call in calls)
            answer = send_message(self.transport, message, wire, urgent=urgent)
        except Exception as error:
            _end(calls, error)
            return

        def take(answered: Future[str]) -> None:
            if answered.cancelled():
                for call in calls:
                    call.set_cancelled()
                return
            try:
                found = open_answer(answered.result(), self.keys, self.limits, message.id)
                if found.error is not None:
                    raise found.error
                if len(found.outcomes) != len(calls):
                    raise Malformed(f"{len(found.outcomes)} results for {len(calls)} calls")
            except Exception as error:
                _end(calls, error)
                return
            for call, outcome in zip(calls, found.outcomes, strict=True):
                if outcome.error is not None:
                    call.set_exception(outcome.error)
                else:
                    call.take(outcome.value)

        for call in calls:
            call.stopped_by(answer.cancel)
        answer.add_done_callback(take)

    def close(self) -> None:
        """Close the transport."""
        self.transport.close()


def _end(calls: Sequence[Call[Any]], error: BaseException) -> None:
    for call in calls:
        call.set_exception(error)


def _outcome(call: Call[Any]) -> Any:
    """Return the result of *call*, which has ended, or its exception."""
    if call.cancelled():
        return CancelledError()
    error = call.exception()
    return call.result() if error is None else error


def _when_all_ended(calls: Sequence[Call[Any]], end: Callable[[], None]) -> None:
    """Call *end* when all of *calls* have ended, at once where they have."""
    left = dict.fromkeys(calls)
    lock = threading.Lock()

    def ended(call: Future[Any]) -> None:
        with lock:
            left.pop(cast("Call[Any]", call))
            last = not left
        if last:
            end()

    for call in list(left):
        call.add_done_callback(ended)
    if not calls:
        end()


def _sent_as(value: Any, calls: Sequence[Call[Any]]) -> Any:
    """Return what is sent for *value*, which is no value of the protocol."""
    if isinstance(value, Later):
        return index_of(value, calls)
    if isinstance(value, Row):
        return nodes.Object(str(value._model), value.pk)
    if isinstance(value, QuerySet):
        return nodes.Delayed(value.tree)
    if isinstance(value, Delayed):
        return nodes.Delayed(value.queryset.tree)
    return NotImplemented
