"""The transport over Celery: a message is one task, in one of two queues.

Celery's publishing and its ``AsyncResult.get`` block. So messages are published from a few threads,
and the results of all messages come to one subscriber a process: see `redis_answers` and
`amqp_answers`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from celery import Celery
from django.core.exceptions import ImproperlyConfigured
from kombu import Connection, Queue
from kombu.exceptions import OperationalError
from kombu.pools import ProducerPool

from ..protocol.errors import Unavailable
from .amqp_answers import AmqpAnswers
from .redis_answers import RedisAnswers
from .threaded import ThreadedTransport

logger = logging.getLogger("pgbackend.rpc")

# The task that a worker runs for each message; its only argument is the message.
TASK = "pgbackend.rpc.handle"

DEFAULT_QUEUE = "rpc"
PRIORITY_QUEUE = "rpc.high"

# How many messages a process publishes at once.
PUBLISHERS = 4

# How long connecting to the broker may take, seconds.
CONNECT_TIMEOUT = 3.0

# Seconds before each further attempt to publish.
_DELAYS = (0.0, 0.3)


def queues(default: str, priority: str) -> list[Queue]:
    """Return the queues, as clients and workers declare them."""
    return [Queue(name, routing_key=name) for name in (default, priority)]


def is_redis(url: str) -> bool:
    """Return whether *url* is that of a Redis, over TCP, TLS or a Unix socket."""
    return urlsplit(url).scheme in ("redis", "rediss", "redis+socket", "socket", "unix")


class CeleryTransport(ThreadedTransport):
    """Sends messages to the workers of ``celery -A pgbackend.rpc.celery worker``.

    *broker* is the URL of a Redis or of a RabbitMQ, *results* that of a Redis or ``"rpc://"``: a
    queue of this process in the broker. None: the Redis of *broker*, or ``"rpc://"``. It has to be
    what the workers have as ``RESULT_BACKEND``.
    """

    name = "rpc-celery"

    def __init__(
        self,
        broker: str,
        results: str | None = None,
        *,
        queue: str = DEFAULT_QUEUE,
        priority_queue: str = PRIORITY_QUEUE,
    ) -> None:
        super().__init__()
        self.broker = broker
        self.results = results or (broker if is_redis(broker) else "rpc://")
        if not is_redis(self.results) and not self.results.startswith("rpc"):
            raise ValueError(
                f"RESULT_BACKEND is the URL of a Redis or 'rpc://', not {self.results!r}: the"
                " answers are waited for without polling"
            )
        self.queue = queue
        self.priority_queue = priority_queue
        # Celery would listen for each result of a backend by itself.
        self.app = Celery(
            "pgbackend.rpc.client", broker=broker, backend="disabled", set_as_current=False
        )
        self.app.conf.update(
            task_queues=queues(queue, priority_queue),
            task_default_queue=queue,
            # A message that the broker has lost ends at its deadline.
            task_default_delivery_mode="transient",
        )
        self._publishers: ThreadPoolExecutor | None = None
        self._producers: ProducerPool | None = None
        self._answers: RedisAnswers | AmqpAnswers | None = None

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> CeleryTransport:
        """Return the transport of an alias. Raise ImproperlyConfigured."""
        if not settings.get("BROKER_URL"):
            raise ImproperlyConfigured(
                "the transport 'celery' needs 'BROKER_URL': that of a Redis or a RabbitMQ"
            )
        try:
            return cls(
                settings["BROKER_URL"],
                settings.get("RESULT_BACKEND"),
                queue=settings.get("DEFAULT_QUEUE_NAME", DEFAULT_QUEUE),
                priority_queue=settings.get("PRIORITY_QUEUE_NAME", PRIORITY_QUEUE),
            )
        except ValueError as error:
            raise ImproperlyConfigured(f"{error}") from error

    async def serve(self) -> None:
        """Receive answers."""
        await self.answers().serve()

    def answers(self) -> RedisAnswers | AmqpAnswers:
        """Return what receives the answers of this process."""
        # The publishers' threads ask, and the loop that is to serve it.
        with self._lock:
            if self._answers is None:
                if is_redis(self.results):
                    self._answers = RedisAnswers(self.results, self.pending)
                else:
                    self._answers = AmqpAnswers(self.broker, self.pending, self.call)
            return self._answers

    def hand_over(self, message_id: str, wire: str, urgent: bool, deadline: float) -> None:
        """Publish a message in one of the publishers' threads."""
        with self._lock:
            if self._publishers is None:
                self._publishers = ThreadPoolExecutor(PUBLISHERS, thread_name_prefix="rpc-publish")
                connection = Connection(self.broker, connect_timeout=CONNECT_TIMEOUT)
                self._producers = ProducerPool(connection.Pool(PUBLISHERS), limit=PUBLISHERS)
            publishers, producers = self._publishers, self._producers
        publishers.submit(self._publish, producers, message_id, wire, urgent, deadline)

    def _publish(
        self, producers: ProducerPool, message_id: str, wire: str, urgent: bool, deadline: float
    ) -> None:
        left = deadline - time.time()
        if left <= 0:
            return
        try:
            if not self.answers().ready(left):
                raise ConnectionError(
                    f"{self.pending.trouble or 'there was no queue for the answer in time'}"
                )
            with producers.acquire(block=True, timeout=left) as producer:
                self._send_task(
                    producer,
                    args=(wire,),
                    task_id=message_id,
                    queue=self.priority_queue if urgent else self.queue,
                    # Of a Redis, where 0 comes first whatever the order of the queues; a RabbitMQ
                    # gives both queues their turns.
                    priority=0 if urgent else 3,
                    # RabbitMQ drops the message then; a worker does in any case.
                    expiration=left,
                    reply_to=self.answers().reply_to,
                    # Celery's logs and events are not to tell what is sent.
                    argsrepr="(...)",
                    kwargsrepr="{}",
                    add_to_parent=False,
                )
        except Exception as error:
            # Nobody looks at what comes of this call.
            logger.warning("a message cannot be published: %s", error)
            words = f"the broker cannot be reached: {error}"
            self.call(self.pending.fail, message_id, Unavailable(words))

    def _send_task(self, producer: Any, **options: Any) -> None:
        """Publish by *producer*; once more where the broker was restarted since the last time.

        Nobody can say whether the broker has a message whose publishing failed. So the further ones
        say that they may not be the first.
        """
        headers: dict[str, Any] = {}
        for delay in (*_DELAYS, None):
            try:
                self.app.send_task(TASK, producer=producer, retry=False, headers=headers, **options)
                return
            except OperationalError:
                if delay is None:
                    raise
                time.sleep(delay)
                # What is left of the old connection is closed, as kombu's own attempts do it.
                producer.connection.collect()
                producer.revive(producer.connection)
                headers = {"redelivered": True}

    def forked(self) -> None:
        """Forget the connections of the process that this one was forked from."""
        self._publishers = self._producers = self._answers = None

    def close(self) -> None:
        """End the threads and close the connections; see `Transport.close`."""
        with self._lock:
            publishers, producers = self._publishers, self._producers
            self._publishers = self._producers = None
        if publishers is not None:
            publishers.shutdown(cancel_futures=True)
        if producers is not None:
            producers.connections.force_close_all()
        super().close()
        self._answers = None
