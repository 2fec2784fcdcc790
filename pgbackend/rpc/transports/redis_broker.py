"""kombu's transport to a Redis, for workers: closing it works while the server is away, too.

kombu asks the server to forget queues and to take messages back when a channel is closed. Where the
server has just gone away both raise, the channel stays half open, and closing it once more ends the
worker: https://github.com/celery/kombu/issues/582.
"""

from __future__ import annotations

import logging
from typing import Any

from kombu.transport import redis
from redis.exceptions import RedisError

logger = logging.getLogger("pgbackend.rpc")

_ERRORS = (RedisError, OSError)


class QoS(redis.QoS):
    """What a channel has delivered."""

    def restore_unacked(self, client: Any = None) -> None:
        """Give messages back; where the server is away, their leases end by themselves."""
        try:
            super().restore_unacked(client)
        except _ERRORS as error:
            logger.warning("messages are not given back before their leases end: %s", error)


class Channel(redis.Channel):
    """A channel whose end does not depend on the server."""

    QoS = QoS

    def queue_delete(self, queue: str, *args: Any, **kwargs: Any) -> Any:
        """Delete a queue; where the server is away, leave that of a worker that ends to it."""
        try:
            return super().queue_delete(queue, *args, **kwargs)
        except _ERRORS as error:
            logger.warning("the queue %s is not deleted: %s", queue, error)
            return None


class Transport(redis.Transport):
    """The transport of ``redis://``, with such channels."""

    Channel = Channel
