"""Wrappers of ASGI applications: one for the bridge, one for pools from start-up to shutdown.

Django's own handler does not need the first one: `patches` runs each of its requests in a bridge.
`BridgedApplication` does the same for any other ASGI application, such as WebSocket consumers.
`LifespanApplication` opens the pools at start-up and closes them at shutdown.

https://asgi.readthedocs.io/en/latest/specs/
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Protocol

from django.core.exceptions import ImproperlyConfigured
from django.db import connections

from .pool.open_pools import open_pools
from .requests.serving import serve
from .requests.stalled import ClientStalledError, Message, Send, give_back_leases, limited_send
from .wrapper.attributes import BackendWrapper
from .wrapper.dispatch import in_bridge

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
# What frameworks say of their applications differs: Django's takes a dict, which is not every
# mutable mapping.
Application = Callable[[Any, Any, Any], Awaitable[None]]

logger = logging.getLogger("pgbackend.asgi")

# How long shutdown waits for connections that are on loan, seconds.
SHUTDOWN_TIMEOUT = 30.0


class BridgedApplication:
    """An ASGI application that handles each connection in one bridge, as Django's requests.

    With ``application = BridgedApplication(application)``, lazy relations and other synchronous ORM
    access work in the application's asynchronous code, without a thread. Scopes of type
    ``lifespan`` are passed on unchanged.
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
            with limited_send(send) as sending:
                await self.application(scope, receive, sending)
        except ClientStalledError as error:
            logger.warning("ended the connection of a client: %s", str(error))
            give_back_leases()


class Companion(Protocol):
    """What runs beside the requests, from start-up to shutdown."""

    async def start(self) -> None: ...

    async def stop(self, seconds: float) -> None: ...


# Makes the companion that the argument *listen* of `LifespanApplication` asks for, from its value.
# The application "pgbackend.pubsub" sets it.
make_listener: Callable[[Any], Companion] | None = None


class LifespanApplication:
    """An ASGI application with pools that are open from start-up to shutdown.

    At ``lifespan.startup`` each database's pool is opened and connects: if the server cannot be
    reached, start-up fails with its message. At ``lifespan.shutdown`` the pools close once the
    connections on loan are back, or after *timeout* seconds. The events are passed on to the
    application, which need not support them; Django's does not.

    With *listen* a worker of ``pgbackend.pubsub`` runs beside the requests, as ``manage.py listen``
    does in a process of its own: for all channels that have listeners if it is True, or for those
    that it is a list of. At shutdown it has *timeout* seconds for what it is handling.
    """

    def __init__(
        self,
        application: Application,
        *,
        timeout: float = SHUTDOWN_TIMEOUT,
        listen: bool | Sequence[Any] = False,
    ) -> None:
        self.application = application
        self.timeout = timeout
        self.listen = listen

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
        self.companion: Companion | None = None

    async def run(self) -> None:
        application = asyncio.create_task(self._call_application())
        try:
            answer = await self._run(application)
        finally:
            if self.companion is not None:
                await self.companion.stop(self.owner.timeout)
            await _close_pools(self.owner.timeout)
            application.cancel()
            await asyncio.wait([application])
            if not application.cancelled():
                # Retrieve the error: an application without lifespan support raises one, which
                # asyncio would report.
                application.exception()
        # Send the answer last: the server may end the loop as soon as it gets it.
        await self.send(answer)

    async def _run(self, application: asyncio.Task[None]) -> Message:
        """Serve until the end, and return the last message for the server."""
        event = await self.receive()
        try:
            await _open_pools()
            if self.owner.listen:
                await self._listen()
        except Exception as error:
            return {"type": "lifespan.startup.failed", "message": _words(error)}
        started = await self._ask(application, event)
        if started is not None and started["type"].endswith("failed"):
            return started
        await self.send(started or {"type": "lifespan.startup.complete"})
        event = await self.receive()
        stopped = await self._ask(application, event)
        return stopped or {"type": "lifespan.shutdown.complete"}

    async def _listen(self) -> None:
        if make_listener is None:
            raise ImproperlyConfigured(
                "LifespanApplication(listen=...) runs a worker of pgbackend.pubsub: put 'pgtrigger'"
                " and 'pgbackend.pubsub' into INSTALLED_APPS"
            )
        companion = make_listener(self.owner.listen)
        await companion.start()
        self.companion = companion

    async def _call_application(self) -> None:
        await self.owner.application(self.scope, self.events.get, self.answers.put)

    async def _ask(self, application: asyncio.Task[None], event: Message) -> Message | None:
        """Return the application's answer to an event, or None if it gives none."""
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
    """Open each database's pool, and borrow a connection once."""
    for alias in connections:
        wrapper = connections[alias]
        if isinstance(wrapper, BackendWrapper) and wrapper.bridge_enabled:
            await in_bridge(_try_connection, wrapper)


async def _try_connection(wrapper: BackendWrapper) -> None:
    wrapper.ensure_connection()


async def _close_pools(seconds: float) -> None:
    await asyncio.gather(*(pool.close_when_idle(seconds) for pool in open_pools()))


def _words(error: BaseException) -> str:
    """Return an error's text, including the server's own words."""
    return str(error) or type(error).__name__
