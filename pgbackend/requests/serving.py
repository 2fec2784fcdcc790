"""Requests: each runs in one bridge, with connection wrappers of its own.

`patches.handlers` passes the methods of Django's handler through `serve` and the functions beside
it; `pgbackend.asgi.BridgedApplication` does so for any other ASGI application.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

from django.db import connections

from .. import conf
from ..bridge.current import is_bridged
from ..bridge.ends import begin_scope
from ..pool.borrowers import of_request
from ..tasks.membership import in_transaction
from ..tasks.request import serving_with
from ..wrapper.dispatch import in_bridge, runs_bridged
from .stalled import ClientStalledError, Send, give_back_leases, limited_send

logger = logging.getLogger("pgbackend.asgi")

P = ParamSpec("P")

T = TypeVar("T")


class _Request:
    """The tasks and the body of a request, which must end if the server cancels it."""

    def __init__(self) -> None:
        self.tasks: list[asyncio.Task[Any]] = []
        self.body: Any = None

    async def end(self) -> None:
        here = asyncio.current_task()
        tasks = [task for task in self.tasks if task is not here and not task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


# The request of this context.
_request: ContextVar[_Request | None] = ContextVar("pgbackend_request", default=None)


async def serve(
    handle: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
) -> T:
    """Await ``handle(...)``, which serves one request.

    If the server cancels the request, Django 5.2 and 6.0 would leave the view running, which is a
    task of its own there, and the request's body open. The body would stay open, too, if a
    streaming response fails.
    """
    request = _Request()
    token = _request.set(request)
    scope = next((each for each in args if isinstance(each, dict) and "type" in each), None)
    scope_token = of_request.set(scope)
    try:
        with own_wrappers():
            return await in_request(handle, *args, **kwargs)
    except asyncio.CancelledError:
        await request.end()
        raise
    finally:
        _request.reset(token)
        of_request.reset(scope_token)
        if request.body is not None:
            request.body.close()


async def read(
    read_body: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
) -> T:
    """Await ``read_body(...)``, which returns the body of the request that `serve` began."""
    body = await read_body(*args, **kwargs)
    if (request := _request.get()) is not None:
        request.body = body
    return body


async def work(
    handle: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
) -> T:
    """Await ``handle(...)``, a part of the request that `serve` began, possibly in another task."""
    request, task = _request.get(), asyncio.current_task()
    if request is not None and task is not None:
        request.tasks.append(task)
    if task is None or is_bridged():
        return await in_request(handle, *args, **kwargs)
    return await in_request(_part, task, handle, args, kwargs)


async def respond(
    send_response: Callable[..., Coroutine[Any, Any, None]], handler: Any, response: Any, send: Send
) -> None:
    """Await ``send_response(...)`` for the request that `serve` began; see `stalled`."""
    try:
        with limited_send(send, streaming=response.streaming) as sending:
            await work(_send_and_close, send_response, handler, response, sending)
    except ClientStalledError as error:
        # Django continues as after any response. The response was not sent completely, so the
        # server closes the client's connection.
        logger.warning("ended the response to a client: %s", str(error))
        give_back_leases()


async def _send_and_close(
    send_response: Callable[..., Coroutine[Any, Any, None]], handler: Any, response: Any, send: Send
) -> None:
    """Await ``send_response(...)``, and close the body if it is not read to its end.

    Django leaves closing to the garbage collector, and with it the cursor that the body reads from.
    """
    try:
        await send_response(handler, response, send)
    except BaseException:
        aclose = getattr(getattr(response, "_iterator", None), "aclose", None)
        if aclose is not None:
            try:
                await aclose()
            except Exception as error:
                # Do not replace the exception, possibly a cancellation, that ended the reading.
                logger.warning("the body of a response failed as it was closed: %r", error)
        raise


async def _part(
    task: asyncio.Task[Any],
    handle: Callable[..., Coroutine[Any, Any, T]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> T:
    """Await a part of a request; *task* may run other parts later, such as the streaming body.

    The later parts use the session that this part has made.
    """
    if is_bridged():
        begin_scope(lambda callback: task.add_done_callback(lambda _: callback()))
    return await handle(*args, **kwargs)


async def in_request(
    handle: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
) -> T:
    """Await ``handle(...)`` in a bridge, unless ``PGBACKEND_IMPLICIT_IO`` is off."""
    # Read all settings here, so that a wrong one is refused before any of the request has run.
    seconds, implicit = conf.blocking_time(), conf.implicit_io()
    conf.sync_on_loop()
    conf.client_timeout()
    if seconds is not None and runs_bridged(None):
        # Import the detector only if it is wanted.
        from .. import detector

        detector.watch(seconds)
    if implicit:
        return await in_bridge(handle, *args, **kwargs)
    return await handle(*args, **kwargs)


@contextmanager
def own_wrappers() -> Iterator[None]:
    """Give the block connection wrappers of its own, one for each alias.

    A server imports the application while its loop runs: each request would inherit wrappers made
    meanwhile, with their query log and ``execute_wrappers``. A wrapper with a transaction open in
    this context is kept, for example that of a test case.

    The wrappers are made at once: the request would not know a wrapper that a child task makes.
    """
    storage: Any = connections._connections
    inherited = {
        alias: wrapper
        for alias in connections
        if (wrapper := getattr(storage, alias, None)) is not None and not in_transaction(wrapper)
    }
    kept = {alias for alias in connections if hasattr(storage, alias)} - inherited.keys()
    for alias in inherited:
        delattr(storage, alias)
    try:
        with serving_with({alias: connections[alias] for alias in connections}):
            yield
    finally:
        for alias in connections:
            if alias in inherited:
                setattr(storage, alias, inherited[alias])
            elif alias not in kept and hasattr(storage, alias):
                delattr(storage, alias)
