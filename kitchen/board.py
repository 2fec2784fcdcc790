"""The kitchen's board: the orders that matter now, and their changes as server-sent events.

See https://html.spec.whatwg.org/multipage/server-sent-events.html for the format.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from django.core.handlers.asgi import ASGIRequest
from django.core.serializers.json import DjangoJSONEncoder
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.views.decorators.http import require_GET

from kitchen.models import Order

# Ready orders stay until so many others are ready too.
READY_SHOWN = 12

# How often a stream looks for what nobody has announced: the work of the admin, or of others.
POLL_SECONDS = 0.5

# Proxies and browsers give up a stream that says nothing for a minute or so.
KEEP_ALIVE_SECONDS = 15.0

RECONNECT_MILLISECONDS = 2000

# Set when the server shuts down: it waits for its responses, and these never end by themselves.
closing = asyncio.Event()

_announced = asyncio.Condition()


async def announce() -> None:
    """Let the streams of this process look at once: an order was placed, or advanced."""
    async with _announced:
        _announced.notify_all()


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

    The server closes the generator when the client has gone. Between two looks at the database
    it holds no connection.
    """
    orders = await board_orders()
    shown = {order.pk: order.status for order in orders}
    yield f"retry: {RECONNECT_MILLISECONDS}\n\n"
    yield event("board", [order.as_json() for order in orders])

    silent_for = 0.0
    while not closing.is_set():
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_SECONDS), _announced:
                await _announced.wait()
        # Keys and statuses, not "changed since": a transaction may commit after a later one.
        now = {pk: status async for pk, status in on_board().values_list("pk", "status")}
        changed = [pk for pk, status in now.items() if shown.get(pk) != status]
        messages = [event("removed", {"id": pk}) for pk in shown.keys() - now.keys()]
        if changed:
            async for order in Order.objects.detailed().filter(pk__in=changed).order_by("pk"):
                messages.append(event("order", order.as_json()))
        shown = now

        silent_for = 0.0 if messages else silent_for + POLL_SECONDS
        if silent_for >= KEEP_ALIVE_SECONDS:
            messages.append(": keep-alive\n\n")
            silent_for = 0.0
        if messages:
            yield "".join(messages)


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
