"""The transport over PostgreSQL: a message is a row of a stored channel, its answer a NOTIFY.

No broker is needed but the service's own database, where ``pgbackend.pubsub`` is installed. One
connection of this process sends the messages and hears the answers. An answer that is longer than a
NOTIFY may be comes in a row, too.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import psycopg
from django.core.exceptions import ImproperlyConfigured
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from ...futures.result import Future
from ...pool.dedicated import DedicatedConnection
from ...pubsub.names import wire_name
from ...pubsub.wire import WAKE, parse
from ..protocol.errors import Malformed, Unavailable
from .threaded import ThreadedTransport

# The channel of messages, which `postgres_service` has, and what the names of the channels of
# answers begin with.
CHANNEL = "pgbackend.rpc.transports.postgres_service.RpcMessage"
ANSWERS = "pgpubsub_rpc_"

# How many messages one statement stores.
_STORED = 500

# A message that is lost with the server ends at its deadline, so its commit need not wait for the
# disk. It does so much that the round trip is half as long.
_SESSION = "SET synchronous_commit = off"

_STORE = """
WITH stored AS (
    INSERT INTO pgpubsub_notification (channel, payload, state, priority)
    SELECT %(channel)s, payload::jsonb, 'ready', priority
    FROM unnest(%(payloads)s::text[], %(priorities)s::int[]) AS sent (payload, priority)
    RETURNING id
)
SELECT pg_notify(%(channel)s, %(wake)s) FROM (SELECT count(*) FROM stored) AS counted
"""

_FETCH = """
DELETE FROM pgpubsub_notification WHERE id = %s AND state = 'plain' AND channel = %s
RETURNING payload::text
"""


class _Sent(NamedTuple):
    """A message that waits until it is stored."""

    message_id: str
    payload: str
    priority: int


class PostgresTransport(ThreadedTransport):
    """Sends messages to those who listen in *database*: an alias of ``DATABASES``, or a DSN.

    Its role needs INSERT on ``pgpubsub_notification`` and, for long answers, SELECT and DELETE.
    """

    name = "rpc-postgres"

    def __init__(self, database: str) -> None:
        super().__init__()
        self.database = database
        self._begin()

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> PostgresTransport:
        """Return the transport of an alias. Raise ImproperlyConfigured."""
        database = settings.get("DATABASE")
        if not isinstance(database, str) or not database:
            raise ImproperlyConfigured(
                "the transport 'postgres' needs 'DATABASE': an alias of DATABASES, or the DSN of"
                f" the service's database, not {database!r}"
            )
        return cls(database)

    def _begin(self) -> None:
        self._channel = wire_name(CHANNEL)
        self._answers = f"{ANSWERS}{self.pending.prefix}"
        self._sent: deque[_Sent] = deque()
        self._more = asyncio.Event()
        # The ids of messages that wait in the service, and of some that were answered.
        self._waiting: set[str] = set()
        self.connection: DedicatedConnection | None = None

    def forked(self) -> None:
        """Forget what belongs to the process that this one was forked from."""
        self._begin()

    def hand_over(self, message_id: str, wire: str, urgent: bool, deadline: float) -> None:
        """Have the thread store a message."""
        self.call(self._store_soon, message_id, wire, urgent)

    def send_waiting(self, wire: str, *, deadline: float) -> Future[str]:
        """Send a message that waits in the service; see `Transport.send_waiting`.

        It ends with `Unavailable` where the connection is lost, which may have lost the answer.
        """

        def hand_over(message_id: str) -> None:
            self.call(self._note_waiting, message_id)
            self.hand_over(message_id, wire, False, deadline)

        return self.sent_by(hand_over, deadline)

    def _note_waiting(self, message_id: str) -> None:
        # Not each time: with thousands of subscriptions that would be most of the work.
        if len(self._waiting) > 2 * len(self.pending):
            self._waiting = {each for each in self._waiting if each in self.pending}
        self._waiting.add(message_id)

    def _store_soon(self, message_id: str, wire: str, urgent: bool) -> None:
        if "\0" in wire or _has_surrogates(wire):
            # jsonb takes neither, and no message has them.
            self.pending.fail(message_id, Malformed("the message is no text that can be sent"))
            return
        kwargs = {"id": message_id, "reply": self._answers, "wire": wire}
        payload = json.dumps({"kwargs": kwargs}, separators=(",", ":"), ensure_ascii=False)
        self._sent.append(_Sent(message_id, payload, 1 if urgent else 0))
        self._more.set()

    async def serve(self) -> None:
        """Store messages and hear answers until the task is cancelled."""
        # An event belongs to one loop.
        self._more = asyncio.Event()
        self.connection = DedicatedConnection(
            "rpc",
            arguments_for(self.database),
            prepare=self._prepare,
            received=self._received,
            lost=self._lost,
        )
        watching = asyncio.create_task(self.connection.run())
        try:
            await self._store()
        finally:
            # The end of the thread cancels all tasks: a second time would keep it from closing.
            if not watching.cancelling():
                watching.cancel()
            await asyncio.wait([watching])

    async def _prepare(self, connection: DedicatedConnection) -> None:
        await connection.execute(_SESSION)
        await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._answers)))
        self.pending.trouble = None
        self._more.set()

    def _lost(self, error: BaseException) -> None:
        self.pending.trouble = error
        for each in self._waiting:
            self.pending.fail(each, Unavailable(f"the connection was lost: {error}"))
        self._waiting.clear()

    async def _store(self) -> None:
        """Store what was sent, all that has come meanwhile by one statement."""
        assert self.connection is not None
        while True:
            await self._more.wait()
            self._more.clear()
            while self._sent and self.connection.state == "open":
                count = min(len(self._sent), _STORED)
                some = [self._sent.popleft() for _ in range(count)]
                # Those that have ended meanwhile need not be sent.
                some = [each for each in some if each.message_id in self.pending]
                try:
                    await self._store_some(some)
                except psycopg.OperationalError:
                    # The connection is lost. Whether they were stored nobody can say: if they were,
                    # their answers come when it is back, and else they end at their deadlines.
                    break

    async def _store_some(self, some: list[_Sent]) -> None:
        assert self.connection is not None
        if not some:
            return
        try:
            await self.connection.execute(
                _STORE,
                {
                    "channel": self._channel,
                    "payloads": [each.payload for each in some],
                    "priorities": [each.priority for each in some],
                    "wake": WAKE,
                },
            )
        except psycopg.OperationalError:
            raise
        except psycopg.Error as error:
            # The table is missing, or the role may not use it.
            for each in some:
                self.pending.fail(
                    each.message_id, Unavailable(f"the message cannot be stored: {error}")
                )

    def _received(self, name: str, payload: str) -> None:
        """Take an answer: ``<id> <text>``, or ``@<row>`` where it is longer."""
        found = parse(payload)
        if found.kind == "reference":
            assert found.id is not None
            self.spawn(self._fetch(found.id))
        else:
            message_id, _, wire = payload.partition(" ")
            self.pending.answer(message_id, wire)

    async def _fetch(self, row_id: int) -> None:
        assert self.connection is not None
        try:
            rows = await self.connection.execute(_FETCH, [row_id, self._answers])
        except psycopg.Error as error:
            # Whose answer it was is in the row: its future ends at the deadline.
            self.pending.trouble = error
            return
        for (text,) in rows:
            found = json.loads(text)
            self.pending.answer(found["id"], found["wire"])


def arguments_for(database: str) -> Callable[[], dict[str, Any]]:
    """Return what returns the arguments for psycopg of *database*, an alias or a DSN."""
    if "=" in database or "://" in database:
        return lambda: dict(conninfo_to_dict(database))

    def arguments() -> dict[str, Any]:
        # Not above: it needs the settings of Django, which a process with a DSN need not have.
        from ...pubsub.connecting import arguments_of

        return arguments_of(database)

    return arguments


def _has_surrogates(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
