"""Run the trees of a message in transactions of their own or in one; answer each with a result.

`handle` is what transports call: one text in, one text out.
"""

from __future__ import annotations

import time

from asgiref.sync import sync_to_async
from django.db import close_old_connections

from ...bridge.current import is_bridged
from ...bridge.greenlets import await_bridged
from ...wrapper.dispatch import all_run_bridged
from ..protocol.answers import Answer, refusal, seal_answer
from ..protocol.errors import RemoteError, ServerError
from ..protocol.messages import Message, milliseconds, open_message
from .batches import Batch
from .failures import failure
from .log import Record
from .replay import Nonce, prune
from .sending import sendable
from .settings import Service, service

__all__ = ["handle"]


def handle(wire: str | bytes, *, redelivered: bool = False) -> str:
    """Return the answer to the message *wire*, a sealed text as well.

    Synchronous: on an event loop call it by ``bridged(handle)``; elsewhere in a thread. Where a
    database of the project is of another engine, it goes to a thread itself. It raises nothing but
    what ends a task or a process: every failure is an answer. *redelivered* says that
    the transport's broker may have delivered the message before, to a worker that died: then a
    nonce that was seen is no replay, writes that were done give their stored answer, and reads run
    again.
    """
    if is_bridged() and not all_run_bridged():
        # The models may be in a database that cannot be waited for on the loop.
        in_thread = sync_to_async(_in_thread, thread_sensitive=False)
        return await_bridged(in_thread(wire, redelivered))
    return _handled(wire, redelivered)


def _in_thread(wire: str | bytes, redelivered: bool) -> str:
    # As Django does at the begin and the end of a request.
    close_old_connections()
    try:
        return _handled(wire, redelivered)
    finally:
        close_old_connections()


def _handled(wire: str | bytes, redelivered: bool) -> str:
    record = Record()
    here = service()
    key_id: str | None = None
    try:
        message = open_message(wire, here.keys, here.limits)
        key_id = message.key_id
        record.message = message
        answer = _answer(message, here, record, redelivered)
        return seal_answer(answer, here.keys, key_id, here.limits, sendable)
    except Exception as error:
        record.error = failure(error, here)
        record.outcomes = ()
        if key_id is None:
            key_id = record.error.key_id
        elif record.message is not None:
            record.error.message_id = record.message.id
        return _refused(record.error, here, key_id)
    finally:
        record.write()


def _answer(message: Message, here: Service, record: Record, redelivered: bool) -> Answer:
    prune(here)
    nonce = Nonce(message, here, redelivered=redelivered)
    batch = Batch(message, here)
    if not batch.takes(nonce):
        nonce.check()
    try:
        outcomes = batch.run()
    finally:
        record.rows = batch.session.rows
    record.outcomes = tuple(outcomes)
    return Answer(id=message.id, time=milliseconds(time.time()), outcomes=tuple(outcomes))


def _refused(error: RemoteError, here: Service, key_id: str | None) -> str:
    try:
        return seal_answer(refusal(error), here.keys, key_id, here.limits)
    except RemoteError:
        plain = ServerError("the error itself cannot be sent")
        plain.message_id = error.message_id
        return seal_answer(refusal(plain), here.keys, key_id)
