"""Celery's results in RabbitMQ: one queue a process, to which the workers reply."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from kombu import Connection, Consumer, Exchange, Queue

from ...pool.dedicated import backoff_delay
from .pending import Pending
from .redis_answers import resolve

logger = logging.getLogger("pgbackend.rpc")

# How long the queue outlives its last reader, seconds: answers wait there through an outage.
EXPIRES = 60.0

# How long connecting may take, and how long one wait for answers, seconds.
CONNECT_TIMEOUT = 3.0
_WAIT = 0.5

# How often the broker and we tell each other that we are there, seconds.
HEARTBEAT = 10

# Between two attempts to connect at most, seconds.
_LONGEST_DELAY = 2.0


class AmqpAnswers:
    """Resolves the futures of *pending* by what comes to the queue `reply_to` of *broker*.

    kombu has no asyncio, so a thread waits for the answers; *call* calls a function on the loop.
    """

    def __init__(self, broker: str, pending: Pending, call: Callable[..., None]) -> None:
        self.broker = broker
        self.pending = pending
        self.losses = 0
        self.reply_to = f"pgbackend.rpc.answers.{pending.prefix}"
        self._call = call
        self._stopped = threading.Event()
        self._declared = threading.Event()
        self._queue = Queue(
            self.reply_to,
            exchange=Exchange(""),
            routing_key=self.reply_to,
            durable=False,
            expires=EXPIRES,
        )

    async def serve(self) -> None:
        """Receive answers until the task is cancelled."""
        thread = threading.Thread(target=self._run, name="rpc-answers", daemon=True)
        thread.start()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            self._stopped.set()
            # It looks whether it is to end after each wait.
            thread.join(2 * _WAIT)

    def ready(self, seconds: float) -> bool:
        """Wait until the queue is there: an answer to none is dropped. Return whether it is."""
        return self._declared.wait(seconds)

    def _run(self) -> None:
        failures = 0
        while not self._stopped.is_set():
            try:
                self._live()
            except Exception as error:
                # Whatever a broker's library raises: the next attempt is a new connection.
                failures = 1 if self._declared.is_set() else failures + 1
                self.losses += self._declared.is_set()
                self._declared.clear()
                if failures == 1 or not failures % 10:
                    logger.warning("answers cannot be received, attempt %d: %s", failures, error)
                self._call(self._note, error)
                self._stopped.wait(backoff_delay(failures, longest=_LONGEST_DELAY))

    def _live(self) -> None:
        with Connection(
            self.broker, connect_timeout=CONNECT_TIMEOUT, heartbeat=HEARTBEAT
        ) as connection:
            try:
                self._consume(connection)
            except Exception:
                # A polite end needs the broker, and leaves the socket open without it.
                connection.collect()
                raise

    def _consume(self, connection: Any) -> None:
        connection.ensure_connection(max_retries=1, interval_start=0)
        with Consumer(
            connection.default_channel,
            queues=[self._queue],
            callbacks=[self._received],
            accept=["json"],
            no_ack=True,
        ):
            self._call(self._note, None)
            self._declared.set()
            while not self._stopped.is_set():
                with suppress(TimeoutError):
                    connection.drain_events(timeout=_WAIT)
                if connection.supports_heartbeats:
                    connection.heartbeat_check()

    def _received(self, body: Any, message: Any) -> None:
        if isinstance(body, dict):
            found = [body.get(name) for name in ("task_id", "status", "result")]
            self._call(resolve, self.pending, *found)

    def _note(self, error: BaseException | None) -> None:
        self.pending.trouble = error
