"""Celery's results in a Redis, as one subscriber a process hears of them.

A worker stores the result of a task under a key with the task's id, and publishes it on a channel
of that name. All ids of a process begin alike, so one pattern hears all of its results. What was
published while nobody listened is in the keys, which are looked at after each connect, and now and
then.
"""

from __future__ import annotations

import asyncio
import json
import logging
from time import monotonic
from typing import Any

import redis.asyncio
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from ...pool.dedicated import backoff_delay
from ..protocol.errors import ServerError, Unavailable
from .pending import Pending

logger = logging.getLogger("pgbackend.rpc")

# How Celery names a task's result.
KEY = "celery-task-meta-"

# How often the keys of all that is pending are looked at, seconds, which is also how long a
# connection may be silent; and how long any answer of the server may take.
INTERVAL = 5.0
TIMEOUT = 3.0

# How many results that were read are deleted at once, or after how many seconds of quiet. Those
# that nobody reads end by themselves.
_DELETED = 200
_DELETE_AFTER = 0.2

# Between two attempts to connect at most, seconds.
_LONGEST_DELAY = 2.0


class RedisAnswers:
    """Resolves the futures of *pending* by the results in the Redis at *url*."""

    # Workers store the results: there is no queue to answer to.
    reply_to = ""

    def __init__(self, url: str, pending: Pending) -> None:
        self.url = url
        self.pending = pending
        self.losses = 0
        # The keys of results that were read.
        self._read: list[str] = []

    def ready(self, seconds: float) -> bool:
        """Return True: what is published while nobody listens is kept."""
        return True

    async def serve(self) -> None:
        """Receive results until the task is cancelled; connect again whenever that is needed."""
        failures = 0
        while True:
            try:
                async with self._connected() as client:
                    await self._live(client)
            except (RedisError, OSError, TimeoutError) as error:
                failures = 1 if self.pending.trouble is None else failures + 1
                self.losses += self.pending.trouble is None
                if failures == 1 or not failures % 10:
                    logger.warning("results cannot be received, attempt %d: %s", failures, error)
                self.pending.trouble = error
                await asyncio.sleep(backoff_delay(failures, longest=_LONGEST_DELAY))

    def _connected(self) -> Any:
        return redis.asyncio.from_url(
            self.url,
            decode_responses=True,
            socket_timeout=TIMEOUT,
            socket_connect_timeout=TIMEOUT,
            socket_keepalive=True,
            # This class connects again itself, and looks at the keys then.
            retry=Retry(NoBackoff(), 0),
        )

    async def _live(self, client: Any) -> None:
        """Receive results by one connection until it is lost, which raises."""
        async with client.pubsub() as pubsub:
            await pubsub.psubscribe(f"{KEY}{self.pending.prefix}-*")
            heard = looked = monotonic()
            while True:
                wait = _DELETE_AFTER if self._read else INTERVAL / 2
                message = await pubsub.get_message(timeout=wait)
                now = monotonic()
                if message is not None:
                    heard = now
                    if message["type"] == "pmessage":
                        self._take(message["data"])
                    elif message["type"] == "psubscribe":
                        self.pending.trouble = None
                        looked = 0.0
                elif now - heard > 2 * INTERVAL:
                    raise TimeoutError("the server is silent")
                elif now - heard > INTERVAL:
                    await pubsub.ping()
                if now - looked > INTERVAL:
                    looked = now
                    await self._look(client)
                if len(self._read) >= _DELETED or (message is None and self._read):
                    read, self._read = self._read, []
                    await client.unlink(*read)

    async def _look(self, client: Any) -> None:
        """Look for the results of all that is pending."""
        if ids := self.pending.ids():
            for found in await client.mget([KEY + each for each in ids]):
                if found is not None:
                    self._take(found)

    def _take(self, text: str) -> None:
        """Resolve a future by the JSON of a result."""
        try:
            found = json.loads(text)
            message_id, status, result = found["task_id"], found["status"], found["result"]
        except (ValueError, KeyError, TypeError):
            logger.error("a result cannot be read: %.100r", text)
            return
        self._read.append(f"{KEY}{message_id}")
        resolve(self.pending, message_id, status, result)


def resolve(pending: Pending, message_id: str, status: str, result: Any) -> None:
    """Resolve the future of a message by what Celery says of its task."""
    if status == "SUCCESS" and isinstance(result, str):
        pending.answer(message_id, result)
    elif status == "REVOKED":
        pending.fail(message_id, Unavailable("the message was revoked"))
    elif status in ("SUCCESS", "FAILURE"):
        pending.fail(message_id, ServerError("the worker failed; its log has the reason"))
    # Any other state is not the last one.
