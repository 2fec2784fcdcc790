"""Requests: each is one bridge, with connection wrappers of its own; and ASGI's lifespan.

Django's own handler needs nothing of this by name: `patches` puts each of its requests through
`serve`. `BridgedApplication` gives the same to any other ASGI application, such as WebSocket
consumers; `LifespanApplication` opens the pools at start-up and closes them at shutdown.

https://asgi.readthedocs.io/en/latest/specs/
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

from django.db import connections

from . import conf
from .base import DatabaseWrapper
from .bridge.greenlets import is_bridged, last
from .pool.open_pools import open_pools
from .requests.stalled import ClientStalledError, Message, Send, bounded, give_back_what_is_left
from .tasks.membership import in_transaction
from .wrapper.dispatch import in_bridge, runs_bridged
from .wrapper.query_log import serving_with

P = ParamSpec("P")
T = TypeVar("T")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

logger = logging.getLogger("pgbackend.asgi")

# How long shutdown waits for connections that are on loan, seconds.
SHUTDOWN_TIMEOUT = 30.0


class _Request:
    """What must not outlive a request that the server cancels."""

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

    When the server cancels it, Django 5.2 and 6.0 would leave the view running, which is a task
    of its own there, and the request's body open; the latter also when a streaming body fails.
    """
    request = _Request()
    token = _request.set(request)
    try:
        with own_wrappers():
            return await in_request(handle, *args, **kwargs)
    except asyncio.CancelledError:
        await request.end()
        raise
    finally:
        _request.reset(token)
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
    """Await ``handle(...)``, a part of the request that `serve` began, maybe in another task."""
    request, task = _request.get(), asyncio.current_task()
    if request is not None and task is not None:
        request.tasks.append(task)
    if task is None or is_bridged():
        return await in_request(handle, *args, **kwargs)
    return await in_request(_part, task, handle, args, kwargs)


async def respond(
    send_response: Callable[..., Coroutine[Any, Any, None]], handler: Any, response: Any, send: Send
) -> None:
    """Await ``send_response(...)``, of the request that `serve` began; see `stalled`."""
    try:
        with bounded(send, streaming=response.streaming) as sending:
            await work(_send_and_close, send_response, handler, response, sending)
    except ClientStalledError as error:
        # Django goes on as after any response. It was not sent whole: the server closes.
        logger.warning("ended the response to a client: %s", str(error))
        give_back_what_is_left()


async def _send_and_close(
    send_response: Callable[..., Coroutine[Any, Any, None]], handler: Any, response: Any, send: Send
) -> None:
    """Await ``send_response(...)``, and close the body if it is not read to its end.

    Django leaves that to the collector, and with it the cursor that the body reads from.
    """
    try:
        await send_response(handler, response, send)
    except BaseException:
        aclose = getattr(getattr(response, "_iterator", None), "aclose", None)
        if aclose is not None:
            try:
                await aclose()
            except Exception as error:
                # Not in place of what ended the reading, a cancellation perhaps.
                logger.warning("the body of a response failed as it was closed: %r", error)
        raise


async def _part(
    task: asyncio.Task[Any],
    handle: Callable[..., Coroutine[Any, Any, T]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> T:
    """Await a part of a request whose other parts, its streaming body say, *task* runs later.

    They have the session that this one has made.
    """
    if is_bridged():
        last(lambda callback: task.add_done_callback(lambda _: callback()))
    return await handle(*args, **kwargs)


async def in_request(
    handle: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
) -> T:
    """Await ``handle(...)`` in a bridge, unless ``PGBACKEND_IMPLICIT_IO`` is off."""
    # All of them, so that a wrong one is refused before anything of the request has run.
    seconds, implicit = conf.blocking_time(), conf.implicit_io()
    conf.sync_on_loop()
    conf.client_timeout()
    if seconds is not None and runs_bridged(None):
        # Imported by those who want it.
        from . import detector

        detector.watch(seconds)
    if implicit:
        return await in_bridge(handle, *args, **kwargs)
    return await handle(*args, **kwargs)


@contextmanager
def own_wrappers() -> Iterator[None]:
    """Give the block connection wrappers of its own, one for each alias.

    A server imports the application in its running loop: the wrappers that were made meanwhile
    would be inherited by each request, and with them the query log and ``execute_wrappers``.
    A wrapper with a transaction open in this context is kept, as a test case's is.

    They are made at once: one that a child task makes is unknown to the request.
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


class BridgedApplication:
    """An ASGI application whose every connection runs in one bridge, as Django's requests do.

    In ``application = BridgedApplication(application)``, lazy relations and other synchronous
    ORM access work in its asynchronous code, without a thread. Scopes of type ``lifespan`` go
    to the application as they are.
    """

    def __init__(self, application: Application) -> None:
        self.application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.application(scope, receive, send)
        else:
            await serve(self._call, scope, receive, send)

    async def _call(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with bounded(send) as sending:
                await self.application(scope, receive, sending)
        except ClientStalledError as error:
            logger.warning("ended the connection of a client: %s", str(error))
            give_back_what_is_left()


class LifespanApplication:
    """An ASGI application with pools that are open from start-up to shutdown.

    At ``lifespan.startup`` each database's pool is opened and connects: if the server cannot be
    reached, start-up fails with its message. At ``lifespan.shutdown`` the pools close once the
    connections on loan are back, after *timeout* seconds in any case. The events are passed on
    to the application; one that does not support them, such as Django's, need not.
    """

    def __init__(self, application: Application, *, timeout: float = SHUTDOWN_TIMEOUT) -> None:
        self.application = application
        self.timeout = timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _Lifespan(self, scope, receive, send).run()
        else:
            await self.application(scope, receive, send)


class _Lifespan:
    """One ``lifespan`` scope: the events of the server, and the application's part in them."""

    def __init__(
        self, owner: LifespanApplication, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self.owner = owner
        self.scope = scope
        self.receive = receive
        self.send = send
        self.events: asyncio.Queue[Message] = asyncio.Queue()
        self.answers: asyncio.Queue[Message] = asyncio.Queue()

    async def run(self) -> None:
        application = asyncio.create_task(self._call_application())
        try:
            answer = await self._run(application)
        finally:
            await _close_pools(self.owner.timeout)
            application.cancel()
            await asyncio.wait([application])
            if not application.cancelled():
                # Retrieved: an application without lifespan raises.
                application.exception()
        # Last of all: the server may end the loop as soon as it knows.
        await self.send(answer)

    async def _run(self, application: asyncio.Task[None]) -> Message:
        """Serve until the end, and return what the server is to be told then."""
        event = await self.receive()
        try:
            await _open_pools()
        except Exception as error:
            return {"type": "lifespan.startup.failed", "message": _words(error)}
        started = await self._ask(application, event)
        if started is not None and started["type"].endswith("failed"):
            return started
        await self.send(started or {"type": "lifespan.startup.complete"})
        event = await self.receive()
        stopped = await self._ask(application, event)
        return stopped or {"type": "lifespan.shutdown.complete"}

    async def _call_application(self) -> None:
        await self.owner.application(self.scope, self.events.get, self.answers.put)

    async def _ask(self, application: asyncio.Task[None], event: Message) -> Message | None:
        """Return the application's answer to an event; None if it has none to give."""
        if application.done():
            return None
        self.events.put_nowait(event)
        answer = asyncio.create_task(self.answers.get())
        tasks: list[asyncio.Task[Any]] = [application, answer]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        answer.cancel()
        return None


async def _open_pools() -> None:
    """Open each database's pool and borrow a connection of it once."""
    for alias in connections:
        wrapper = connections[alias]
        if isinstance(wrapper, DatabaseWrapper) and wrapper.bridge_enabled:
            await in_bridge(_try_connection, wrapper)


async def _try_connection(wrapper: DatabaseWrapper) -> None:
    wrapper.ensure_connection()


async def _close_pools(seconds: float) -> None:
    await asyncio.gather(*(pool.close_when_idle(seconds) for pool in open_pools()))


def _words(error: BaseException) -> str:
    """Return an error's text, the server's own words among it."""
    return str(error) or type(error).__name__
