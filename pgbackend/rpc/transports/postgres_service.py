"""The service's side of the transport over PostgreSQL: the channel of messages, and its listener.

Whoever listens to the project's channels answers messages: ``manage.py listen``, or the ASGI server
with ``LifespanApplication(application, listen=True)``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module

from ...extending import own_cursor
from ...pubsub.channels import Channel
from ...pubsub.handling import earlier_attempts
from ...pubsub.sending import database
from ...pubsub.settings import MAX_PLAIN
from ...pubsub.settling import send_at_end
from ...pubsub.stopping import when_stopping
from .postgres import ANSWERS
from .serving import Handle

# What a client may name for its answers: nobody else's channel.
_REPLY = re.compile(rf"{ANSWERS}[0-9a-f]{{16}}")
_ID = re.compile(r"[0-9a-f-]{1,80}")

# The removal that it is sent with need not wait for the disk: a message that is there again after a
# crash of the server comes as one that was redelivered.
_NOTIFY = "SELECT pg_notify(%s, %s), set_config('synchronous_commit', 'off', true)"

# A long answer: the client fetches the row that the notification names.
_STORE = """
WITH stored AS (
    INSERT INTO pgpubsub_notification (channel, payload, state, priority)
    VALUES (%s, %s::jsonb, 'plain', 0) RETURNING id
)
SELECT pg_notify(%s, '@' || id) FROM stored
"""


@dataclass
class RpcMessage(Channel):
    """A message for the service, stored until it is answered.

    It is leased, not claimed in a transaction: it is answered as those of other transports are, in
    transactions of its own. What a worker that died had is there again when the lease ends.
    """

    lock_notifications = True
    lease = 10.0
    retries = 3
    concurrency = 16

    id: str
    reply: str
    wire: str


# What answers the messages; None: the service of the project.
_handle: Handle | None = None


def answer(id: str, reply: str, wire: str) -> None:
    """Answer one message: the listener of the channel."""
    if not (_REPLY.fullmatch(reply) and _ID.fullmatch(id)):
        raise ValueError("a message names no channel of a client for its answer")
    # A worker may have begun to answer it, and died.
    redelivered = earlier_attempts.get() > 0
    later = partial(send_answer, reply, id)
    answered = (_handle or _handle_of_service(later))(wire, redelivered=redelivered)
    if answered is not None:
        send_answer(reply, id, answered)


def _handle_of_service(later: Callable[[str], None]) -> Callable[..., str | None]:
    """Return what answers the messages of this project; those that wait it hands over to *later*.

    A message that waits holds none of the worker's turns, and is not stored: if the worker dies,
    its client asks again after the deadline.
    """
    # The server's room is no dependency of the transports: clients use them, too.
    server = "pgbackend.rpc.server"
    when_stopping(import_module(f"{server}.watching").stop)
    return partial(import_module(f"{server}.running").handle, later=later)


def send_answer(reply: str, message_id: str, text: str) -> None:
    """Notify the client, or store the answer for it where it is too long for that.

    A short answer is sent as the message is removed, in one exchange with the server.
    """
    short = f"{message_id} {text}"
    alias = database(RpcMessage)
    is_short = len(short.encode()) <= MAX_PLAIN
    notify = _NOTIFY, [reply, short]
    if is_short and send_at_end(alias, notify):
        return
    with own_cursor(alias) as cursor:
        if is_short:
            cursor.execute(*notify)
            return
        payload = json.dumps({"id": message_id, "wire": text}, separators=(",", ":"))
        cursor.execute(_STORE, [reply, payload, reply])


def serve(alias: str, handle: Handle | None = None) -> None:
    """Have messages in the database of *alias* answered by whoever listens.

    *handle* answers a message; None: the service of the project, by what it exposes. Another call
    takes the place of the one before.
    """
    global _handle
    _handle = handle
    RpcMessage.using = alias
    if not RpcMessage.registered_listeners():
        RpcMessage.register(answer)
