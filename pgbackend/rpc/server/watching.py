"""Messages that wait: a queryset is answered as soon as it is another one than the client knows.

That is what a subscription is made of: the client asks again with what it was answered, so the
service keeps nothing of it between two messages, and each message is sealed, logged and permitted
as any other. Each look at the rows is a run of its own: the principal, its permissions and its rows
are asked for anew.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextvars import Context
from dataclasses import replace

from django.db import router

from ...bridge.current import is_bridged
from ...bridge.greenlets import await_bridged
from ...wrapper.dispatch import bridged
from ..protocol import nodes
from ..protocol.answers import Outcome
from ..protocol.errors import BadValue, OperationNotAllowed, TooManySubscriptions
from ..protocol.json_text import dumped
from ..protocol.messages import Message
from ..protocol.values import encode
from .batches import Batch
from .changes import Wait, hearing_of, stop_waiting, tables
from .log import Record
from .registry import exposure_of
from .sending import sendable
from .settings import Service

logger = logging.getLogger("pgbackend.rpc.server")

# Seconds between two looks at the rows of one message, so that a burst of changes is one.
INTERVAL = 0.1

# How long the end of a process waits until those that wait are answered, seconds.
STOP_TIMEOUT = 5.0

_SEEN = re.compile(r"[0-9a-f]{64}")

# How many messages wait in this process, by key and principal.
waiting: Counter[tuple[str, str | None]] = Counter()
_lock = threading.Lock()


def asks_for_changes(message: Message) -> bool:
    """Return whether *message* asks for changes, and for nothing else."""
    return len(message.trees) == 1 and message.trees[0].end.name == "changes"


class Watch:
    """Looks at the rows that *message* asks for, now and after changes.

    *record* counts the rows for the log. `open` raises a RemoteError where changes cannot be waited
    for, and `close` has to follow it.
    """

    def __init__(self, message: Message, service: Service, record: Record) -> None:
        (tree,) = message.trees
        self._seen, seconds = _arguments(tree.end)
        if message.atomic or message.dry:
            raise BadValue("changes are not waited for in a transaction")
        if not is_bridged():
            raise OperationNotAllowed(
                "this service cannot wait for changes: its databases are not all of pgbackend, or"
                " it does not run on an event loop"
            )
        exposure = exposure_of(tree.model)
        if not exposure.subscribe:
            raise OperationNotAllowed(
                f"{exposure.model._meta.label} is not exposed for subscriptions"
            )
        self._message = replace(message, trees=(replace(tree, end=nodes.Op("rows")),))
        self._service = service
        self._record = record
        # The database where the triggers fire: a replica may not have the rows by then.
        self._alias = router.db_for_write(exposure.model)
        self._loop = asyncio.get_running_loop()
        left = message.deadline / 1000 - time.time()
        self._latest = self._loop.time() + min(seconds, service.limits.max_wait, left)
        self._earliest = self._loop.time()
        self._wanted: frozenset[str] = frozenset()
        self._wait: Wait | None = None
        self._is_open = False

    def open(self) -> None:
        """Hear of changes from now on, before the first look; raise TooManySubscriptions."""
        if self._seen is None:
            # The first look has an answer, whatever it finds.
            return
        most = self._service.limits.max_subscriptions
        with _lock:
            if waiting[self._holder] >= most:
                raise TooManySubscriptions(
                    f"more than {most} messages wait for changes", {"max_subscriptions": most}
                )
            waiting[self._holder] += 1
        self._is_open = True
        try:
            hearing = hearing_of(self._alias)
            self._wait = hearing.open()
            await_bridged(hearing.listening())
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Hear no more; do nothing if that was done already."""
        if not self._is_open:
            return
        self._is_open = False
        if self._wait is not None:
            self._wait.close()
        with _lock:
            waiting[self._holder] -= 1
            if not waiting[self._holder]:
                del waiting[self._holder]

    def look(self) -> Outcome | None:
        """Run the queryset; return None if the rows are those that the client knows."""
        if self._wait is not None:
            self._wait.clear()
        self._earliest = self._loop.time() + INTERVAL
        batch = Batch(self._message, self._service, alias=self._alias)
        (outcome,) = batch.run()
        self._record.rows = batch.session.rows
        self._wanted = tables(batch.session.named_models)
        if outcome.error is not None:
            return outcome
        text = dumped(encode(outcome.value, sendable))
        seen = hashlib.sha256(text.encode()).hexdigest()
        return None if seen == self._seen else Outcome([seen, outcome.value])

    def rest(self) -> Outcome:
        """Look after each change until there is an answer; its value is None if nothing came."""
        assert self._wait is not None
        while await_bridged(self._wait.until(self._wanted, self._earliest, self._latest)):
            with self._wait.turn():
                found = self.look()
            if found is not None:
                return found
        return Outcome()

    @property
    def _holder(self) -> tuple[str, str | None]:
        return self._message.key_id, self._message.principal


# The tasks of messages that wait without anybody waiting for their answer.
detached: set[asyncio.Task[None]] = set()


def detach(watch: Watch, work: Callable[[], None]) -> None:
    """Run *work*, the rest of a message, bridged in a task of its own; then close *watch*."""
    task = asyncio.get_running_loop().create_task(bridged(work)(), context=Context())
    detached.add(task)
    task.add_done_callback(_ended)
    # A task that is cancelled before its first step runs nothing of *work*.
    task.add_done_callback(lambda _: watch.close())


def _ended(task: asyncio.Task[None]) -> None:
    detached.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("the answer to a message that waited was not sent", exc_info=error)


async def stop() -> None:
    """Have the messages that wait on the running loop answered now; wait for that a little."""
    stop_waiting()
    loop = asyncio.get_running_loop()
    if tasks := [each for each in detached if each.get_loop() is loop]:
        await asyncio.wait(tasks, timeout=STOP_TIMEOUT)


def _arguments(end: nodes.Op) -> tuple[str | None, float]:
    """Return what the client knows, None: nothing, and how long to wait, in seconds."""
    if end.kwargs or len(end.args) != 2:
        raise BadValue("changes takes what was seen, and seconds")
    seen, seconds = end.args
    if not (seen is None or (isinstance(seen, str) and _SEEN.fullmatch(seen))):
        raise BadValue("changes takes null, or what the answer before had")
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds >= 0:
        raise BadValue("changes takes seconds of 0 or more")
    return seen, float(min(seconds, 86_400))
