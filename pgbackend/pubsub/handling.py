"""How one notification is handled: decode it, call its listeners, and say what failed."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial

from django.db import connections, transaction
from greenlet import GreenletExit

from ..extending import is_own
from ..pool.dedicated import backoff_delay
from .channels import BaseChannel
from .claiming import Claimed
from .errors import PubsubError
from .excerpts import excerpt
from .payload import decode
from .running import Running
from .tracing import handling

logger = logging.getLogger("pgbackend.pubsub")

# The longest wait before another attempt, seconds.
LONGEST_BACKOFF = 3600.0

LEFT_OPEN = "a listener has left a block of atomic() open"


# How often the notification was handled before whose listener runs; each attempt may have been cut
# off by the end of its worker.
earlier_attempts: ContextVar[int] = ContextVar("earlier_attempts", default=0)


def call_listeners(running: Running, channel: type[BaseChannel], row: Claimed) -> None:
    """Call the listeners of a stored notification, in the order of their registration.

    Raise what the first of them raises, and PayloadError for a payload that does not fit.
    """
    token = earlier_attempts.set(row.attempts)
    try:
        with handling(channel.name(), row.headers, row.attempts):
            _call_listeners(running, channel, row.payload)
    finally:
        earlier_attempts.reset(token)


def _call_listeners(running: Running, channel: type[BaseChannel], payload: str) -> None:
    notification = decode(channel, payload)
    arguments = notification.signature
    listeners = notification.listeners
    if not listeners:
        # Of an operation that nobody hears: see `conditions.heard_here`.
        raise PubsubError(f"no listener of {channel.name()} hears this here: {payload:.200}")
    for listener in listeners:
        running.call(listener.callback, arguments, channel.timeout)


def call_for_plain(
    running: Running, channel: type[BaseChannel], payload: str, alias: str
) -> list[BaseException]:
    """Call the listeners of a plain notification; log and return what they raise.

    A synchronous one has a transaction of its own, as in django-pgpubsub. An asynchronous one may
    take its time, so it has none, and holds no connection while it waits for something else.
    """
    errors: list[BaseException] = []
    try:
        notification = decode(channel, payload)
    except BaseException as error:
        if not is_failure(running, error):
            raise
        told = excerpt(error)
        logger.error("a notification of %s cannot be read", channel.name(), exc_info=told)
        return [error]
    arguments = notification.signature
    for listener in notification.listeners:
        try:
            if listener.is_async:
                with no_open_blocks():
                    running.call(listener.callback, arguments, channel.timeout)
            else:
                with transaction.atomic(alias):
                    running.call(listener.callback, arguments, channel.timeout)
        except BaseException as error:
            if not is_failure(running, error):
                raise
            logger.error(
                "%s failed for a notification of %s",
                listener.name,
                channel.name(),
                exc_info=excerpt(error),
            )
            errors.append(error)
    return errors


@contextmanager
def no_open_blocks() -> Iterator[None]:
    """Roll back what a listener without a transaction leaves open, and raise RuntimeError.

    An open block would be that of whatever runs next, and keep its connection.
    """
    # Wrappers that are made in the context of the listener alone are not found after it.
    wrappers = connections.all()
    try:
        yield
    finally:
        left_open = [each for each in wrappers if each.in_atomic_block]
        for wrapper in left_open:
            conn, wrapper.connection = wrapper.connection, None
            if conn is not None and not is_own(wrapper):
                conn.close()
    if left_open:
        raise RuntimeError(LEFT_OPEN)


def is_failure(running: Running, error: BaseException) -> bool:
    """Return whether *error* is the listener's own, and not the end of the worker.

    The worker ends by Ctrl-C, or if its own task is cancelled or closed.
    """
    if isinstance(error, asyncio.CancelledError):
        return not running.is_cancelled()
    if isinstance(error, GeneratorExit | GreenletExit):
        return not running.is_closed()
    return not (isinstance(error, KeyboardInterrupt) and may_be_ctrl_c())


def may_be_ctrl_c() -> bool:
    """Return whether a KeyboardInterrupt that is raised here may be Ctrl-C.

    It is a listener's own where the process has a handler of its own for SIGINT, as `listen` and
    the ASGI servers have, and in threads, which signals do not reach.
    """
    if threading.current_thread() is not threading.main_thread():
        return False
    handler = signal.getsignal(signal.SIGINT)
    # In place of Python's own, `asyncio.run` has one that raises KeyboardInterrupt, too.
    method = handler.func if isinstance(handler, partial) else None
    of_runner = isinstance(getattr(method, "__self__", None), asyncio.Runner)
    return handler is signal.default_int_handler or of_runner


def delay_after(channel: type[BaseChannel], attempts: int) -> float:
    """Return how many seconds a notification waits after so many failed *attempts*."""
    return backoff_delay(attempts, channel.backoff, max(LONGEST_BACKOFF, channel.backoff))
