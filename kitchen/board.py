"""The kitchen's board: the orders that matter now, and their changes as server-sent events.

Nobody asks the database whether something has changed: the triggers of `OrderChanged` say it.
See https://html.spec.whatwg.org/multipage/server-sent-events.html for the format.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from django.core.handlers.asgi import ASGIRequest
from django.core.serializers.json import DjangoJSONEncoder
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.views.decorators.http import require_GET

from kitchen.channels import OrderChanged
from kitchen.models import Order
from pgbackend.pubsub import NotificationsMissed, SlowConsumer, Stream

logger = logging.getLogger("kitchen.board")

# Ready orders stay until so many others are ready too.
READY_SHOWN = 12

# Proxies and browsers give up a stream that says nothing for a minute or so.
KEEP_ALIVE_SECONDS = 15.0

RECONNECT_MILLISECONDS = 2000

# How many changes may wait for a client that reads slowly.
CHANGES_WAITING = 1000

# Those of this process that are open.
_streams: set[Stream[OrderChanged]] = set()


def close_streams() -> None:
    """End the streams: a server that shuts down waits for its responses, and these never end."""
    for stream in _streams:
        stream.close()


@asynccontextmanager
async def order_changes() -> AsyncIterator[Stream[OrderChanged]]:
    """Hear the changes from now on; a client that reads too slowly is cut off, and comes again."""
    async with OrderChanged.stream(CHANGES_WAITING) as changes:
        _streams.add(changes)
        try:
            yield changes
        except SlowConsumer as error:
            logger.warning("a board is cut off: %s", error)
        finally:
            _streams.discard(changes)


# The stream goes on after the view, and so outside any transaction of the view's.
@transaction.non_atomic_requests
@require_GET
async def board_events(request: HttpRequest) -> HttpResponse:
    if not isinstance(request, ASGIRequest):
        # WSGI would collect the whole stream, which never ends, before it sends any of it.
        return HttpResponse("The board's events need ASGI: start with `make run`.\n", status=501)
    return StreamingHttpResponse(
        events(),
        content_type="text/event-stream",
        # nginx would buffer it otherwise.
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


async def events() -> AsyncIterator[str]:
    """Yield the board, then each order that comes, changes or leaves.

    The server closes the generator when the client has gone. While nothing changes the stream asks
    the database nothing and holds no connection: all streams share the one that listens.
    """
    now = asyncio.get_running_loop().time
    async with order_changes() as changes:
        # Read when changes are heard already: one that comes meanwhile is looked at once more.
        orders = await board_orders()
        shown = {order.pk: order.status for order in orders}
        yield f"retry: {RECONNECT_MILLISECONDS}\n\n"
        yield event("board", [order.as_json() for order in orders])

        said_at = now()
        while True:
            try:
                async with asyncio.timeout_at(said_at + KEEP_ALIVE_SECONDS):
                    await anext(changes)
                # One look is enough for all that wait.
                changes.clear()
            except StopAsyncIteration:
                return
            except TimeoutError:
                yield ": keep-alive\n\n"
                said_at = now()
                continue
            except NotificationsMissed:
                # Nobody listened for a while: the look shows what has changed meanwhile.
                pass
            if messages := await changes_since(shown):
                yield "".join(messages)
                said_at = now()


async def changes_since(shown: dict[int, str]) -> list[str]:
    """Return the events that tell what has changed since *shown*, the statuses of the orders.

    *shown* is brought up to date.
    """
    found = {pk: status async for pk, status in on_board().values_list("pk", "status")}
    changed = [pk for pk, status in found.items() if shown.get(pk) != status]
    messages = [event("removed", {"id": pk}) for pk in shown.keys() - found.keys()]
    if changed:
        async for order in Order.objects.detailed().filter(pk__in=changed).order_by("pk"):
            messages.append(event("order", order.as_json()))
    shown.clear()
    shown.update(found)
    return messages


async def board_orders() -> list[Order]:
    """Return the orders that are placed or cooking and the latest that are ready, by age."""
    pks = [pk async for pk in on_board().values_list("pk", flat=True)]
    return [order async for order in Order.objects.detailed().filter(pk__in=pks).order_by("pk")]


def on_board() -> QuerySet[Order]:
    open_orders = Order.objects.filter(status__in=[Order.Status.PLACED, Order.Status.COOKING])
    ready = Order.objects.filter(status=Order.Status.READY).order_by("-ready_at")[:READY_SHOWN]
    return open_orders.union(ready, all=True)


def event(name: str, data: Any) -> str:
    # JSON has no bare line breaks, which would end the event.
    return f"event: {name}\ndata: {json.dumps(data, cls=DjangoJSONEncoder)}\n\n"
