"""What a Celery worker does with messages: all of them run on one event loop beside its pool.

Celery hands a task to a process or thread of its pool, one each. A message waits for the database
most of its time, so here it goes to `serving.Serving` instead, whatever pool the worker was started
with. It is acknowledged when its result is stored: what a worker that died had, another one gets.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from time import time
from typing import Any

from celery import bootsteps
from django.core.exceptions import ImproperlyConfigured

from .results import CeleryResults, RedisResults
from .serving import GRACEFUL_TIMEOUT, Serving

logger = logging.getLogger("pgbackend.rpc")


# After how many seconds a Redis gives what a worker has not acknowledged to another one. A worker
# that lives prolongs that in time; a RabbitMQ knows when a connection has ended.
LEASE = 10.0


class Handled:
    """The messages of one worker, from their delivery to their acknowledgement."""

    def __init__(self, serving: Serving, results: RedisResults | CeleryResults) -> None:
        self.serving = serving
        serving.closing = results.close
        self._results = results
        # What acknowledges each message that is being answered, by the ids of the tasks: a broker
        # that was away may deliver one again meanwhile.
        self._open: dict[str, list[Callable[[], object]]] = {}
        self._messages: dict[str, Any] = {}
        # What is to be called in the thread of the consumer, whose connection no other may use.
        self._calls: deque[Callable[[], object]] = deque()
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def take(self, message: Any, urgent: bool, ack: Callable[[], object]) -> None:
        """Have a message answered; called in the thread of the consumer."""
        task_id = message.headers["id"]
        if task_id in self._open:
            self._open[task_id].append(ack)
            return
        (wire, *_), _, _ = message.decode()
        if not isinstance(wire, str):
            raise TypeError("a message is one text")
        self._open[task_id] = [ack]
        self._messages[task_id] = message
        reply_to = message.properties.get("reply_to") or ""
        correlation_id = message.properties.get("correlation_id") or task_id

        async def done(answer: str | None) -> None:
            if answer is None:
                # Not acknowledged: the broker gives it to another worker.
                self._soon(lambda: self._forget(task_id))
                return
            try:
                await self._results.store(task_id, answer, reply_to, correlation_id)
            except Exception:
                logger.exception("the answer of message %s is lost", task_id)
            self._soon(lambda: self._acknowledge(task_id))

        # By the broker, or by a client that does not know whether it was published.
        again = any(
            each.get("redelivered") for each in (message.headers, message.delivery_info or {})
        )
        self.serving.submit(wire, done, urgent=urgent, redelivered=again)

    def _acknowledge(self, task_id: str) -> None:
        for ack in self._forget(task_id):
            ack()

    def _forget(self, task_id: str) -> list[Callable[[], object]]:
        self._messages.pop(task_id, None)
        return self._open.pop(task_id, [])

    def prolong(self, channel: Any) -> None:
        """Have the Redis of *channel* keep what is open for this worker."""
        tags = [each.delivery_tag for each in self._messages.values() if each.channel is channel]
        if tags:
            with channel.conn_or_acquire() as client:
                client.zadd(channel.unacked_index_key, dict.fromkeys(tags, time()), xx=True)

    def _soon(self, call: Callable[[], object]) -> None:
        self._calls.append(call)
        # A full pipe wakes the reader as well.
        with suppress(BlockingIOError):
            os.write(self._writer, b"\0")

    def listen(self, consumer: Any) -> None:
        """Have the loop of *consumer* call what is waiting for its thread."""
        if consumer.hub is None:
            raise ImproperlyConfigured(
                "pgbackend.rpc needs a worker with an event loop: take the pool solo, prefork or"
                " threads"
            )
        consumer.hub.add_reader(self._reader, self.run_calls)

    def run_calls(self) -> None:
        """Acknowledge what is answered; called in the thread of the consumer."""
        with suppress(BlockingIOError):
            os.read(self._reader, 65_536)
        while self._calls:
            try:
                self._calls.popleft()()
            except Exception:
                logger.exception("a message was not acknowledged")

    def stop(self) -> None:
        """Wait for what is being answered, and acknowledge it."""
        if not self.serving.stop(GRACEFUL_TIMEOUT):
            logger.warning("%d messages are left to other workers", len(self._open))
        self.run_calls()
        os.close(self._reader)
        os.close(self._writer)


class ServeStep(bootsteps.StartStopStep):
    """The part of a worker that answers messages: begun before it consumes, ended after that."""

    requires = ("celery.worker.components:Pool",)

    def start(self, worker: Any) -> None:
        """Start the event loop."""
        worker.rpc = Handled(*worker.app.rpc_service())
        worker.rpc.serving.start()

    def stop(self, worker: Any) -> None:
        """Answer what was begun."""
        worker.rpc.stop()

    terminate = stop


class ListenStep(bootsteps.StartStopStep):
    """The part of a consumer that is made anew for each connection."""

    requires = ("celery.worker.consumer.tasks:Tasks",)
    timer: Any = None

    def start(self, consumer: Any) -> None:
        """Have acknowledgements called by the consumer's loop, and messages kept."""
        handled = consumer.controller.rpc
        handled.listen(consumer)
        if consumer.connection.transport.driver_type != "redis":
            return
        channel = consumer.task_consumer.channel
        self.timer = consumer.hub.call_repeatedly(LEASE / 3, handled.prolong, channel)

    def stop(self, consumer: Any) -> None:
        """End what `start` has begun."""
        timer, self.timer = self.timer, None
        if timer is not None:
            timer.cancel()


def strategy(task: Any, app: Any, consumer: Any) -> Callable[..., None]:
    """Return what the consumer calls with each message of the task."""
    handled: Handled = consumer.controller.rpc
    priority = app.conf.rpc_priority_queue
    errors = consumer.connection_errors

    def received(message: Any, body: Any, ack: Any, reject: Any, callbacks: Any) -> None:
        urgent = message.delivery_info.get("routing_key") == priority
        try:
            handled.take(message, urgent, lambda: ack(logger, errors))
        except Exception:
            logger.exception("a message of Celery is no message of pgbackend.rpc")
            reject(logger, errors, False)

    return received
