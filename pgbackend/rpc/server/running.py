"""Run the trees of a message in transactions of their own or in one; answer each with a result.

`handle` is what transports call: one text in, one text out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple, overload

from asgiref.sync import sync_to_async
from django.db import close_old_connections

from ...bridge.current import is_bridged
from ...bridge.greenlets import await_bridged
from ...wrapper.dispatch import all_run_bridged
from ..protocol.answers import Answer, Outcome, refusal, seal_answer
from ..protocol.errors import OperationNotAllowed, RemoteError, ServerError
from ..protocol.messages import Message, milliseconds, open_message
from .batches import Batch
from .failures import failure
from .log import Record
from .replay import Nonce, prune
from .sending import sendable
from .settings import Service, service
from .watching import Watch, asks_for_changes, detach

__all__ = ["handle"]


# Takes the text of an answer that comes later.
Later = Callable[[str], None]


@overload
def handle(
    wire: str | bytes, *, redelivered: bool = False, waits: bool = True, later: None = None
) -> str: ...


@overload
def handle(
    wire: str | bytes, *, redelivered: bool = False, waits: bool = True, later: Later
) -> str | None: ...


def handle(
    wire: str | bytes,
    *,
    redelivered: bool = False,
    waits: bool = True,
    later: Later | None = None,
) -> str | None:
    """Return the answer to the message *wire*, a sealed text as well.

    Synchronous: on an event loop call it by ``bridged(handle)``; elsewhere in a thread. Where a
    database of the project is of another engine, it goes to a thread itself. It raises nothing but
    what ends a task or a process: every failure is an answer. *redelivered* says that
    the transport's broker may have delivered the message before, to a worker that died: then a
    nonce that was seen is no replay, writes that were done give their stored answer, and reads run
    again.

    A message that waits for changes holds the caller until there are some. With *later* it does
    not: None is returned, and *later* is called with the answer, bridged in another task. Without
    *waits* such a message is refused.
    """
    way = _Way(redelivered, waits, later)
    if is_bridged() and not all_run_bridged():
        # The models may be in a database that cannot be waited for on the loop.
        in_thread = sync_to_async(_in_thread, thread_sensitive=False)
        return await_bridged(in_thread(wire, way))
    return _handled(wire, way)


class _Way(NamedTuple):
    """The arguments of `handle` beside the message."""

    redelivered: bool
    waits: bool
    later: Later | None


def _in_thread(wire: str | bytes, way: _Way) -> str | None:
    # As Django does at the begin and the end of a request.
    close_old_connections()
    try:
        return _handled(wire, way)
    finally:
        close_old_connections()


def _handled(wire: str | bytes, way: _Way) -> str | None:
    record = Record()
    here = service()

    def answer() -> Answer | None:
        record.message = message = open_message(wire, here.keys, here.limits)
        return _answer(message, here, record, way)

    return _text(answer, here, record)


def _text(answer: Callable[[], Answer | None], here: Service, record: Record) -> str | None:
    """Return the text of an answer, or of the refusal that it ends with, and log it.

    None: there is no answer yet.
    """
    is_ended = True
    try:
        found = answer()
        is_ended = found is not None
        if found is None:
            return None
        assert record.message is not None
        return seal_answer(found, here.keys, record.message.key_id, here.limits, sendable)
    except Exception as error:
        record.error = failure(error, here)
        record.outcomes = ()
        key_id = record.error.key_id
        if record.message is not None:
            key_id = record.message.key_id
            record.error.message_id = record.message.id
        return _refused(record.error, here, key_id)
    finally:
        if is_ended:
            record.write()


def _answer(message: Message, here: Service, record: Record, way: _Way) -> Answer | None:
    prune(here)
    nonce = Nonce(message, here, redelivered=way.redelivered)
    if asks_for_changes(message):
        nonce.check()
        return _changes(message, here, record, way)
    batch = Batch(message, here)
    if not batch.takes(nonce):
        nonce.check()
    try:
        outcomes = batch.run()
    finally:
        record.rows = batch.session.rows
    return _of(message, record, outcomes)


def _of(message: Message, record: Record, outcomes: Iterable[Outcome]) -> Answer:
    record.outcomes = tuple(outcomes)
    return Answer(id=message.id, time=milliseconds(time.time()), outcomes=record.outcomes)


def _changes(message: Message, here: Service, record: Record, way: _Way) -> Answer | None:
    """Answer a message that waits for changes; return None if that is done later."""
    if not way.waits:
        raise OperationNotAllowed(
            "subscriptions do not go by this transport, where a message that waits would keep"
            " others from being answered: use http or postgres"
        )
    watch = Watch(message, here, record)
    later = way.later
    is_done = True
    watch.open()
    try:
        found = watch.look()
        if found is None and later is not None:
            detach(watch, lambda: _answer_later(message, here, record, watch, later))
            is_done = False
            return None
        return _of(message, record, [found or watch.rest()])
    finally:
        if is_done:
            watch.close()


def _answer_later(
    message: Message, here: Service, record: Record, watch: Watch, later: Later
) -> None:
    try:
        text = _text(lambda: _of(message, record, [watch.rest()]), here, record)
    finally:
        watch.close()
    assert text is not None
    later(text)


def _refused(error: RemoteError, here: Service, key_id: str | None) -> str:
    try:
        return seal_answer(refusal(error), here.keys, key_id, here.limits)
    except RemoteError:
        plain = ServerError("the error itself cannot be sent")
        plain.message_id = error.message_id
        return seal_answer(refusal(plain), here.keys, key_id)
