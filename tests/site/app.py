"""The site of the tests of requests as an ASGI application, with WebSockets beside Django."""

from __future__ import annotations

import django
from django.core.asgi import get_asgi_application

django.setup(set_prefix=False)

from django.db import connections  # noqa: E402  # as what follows: after the setup

from pgbackend.asgi import (  # noqa: E402
    BridgedApplication,
    LifespanApplication,
    Receive,
    Scope,
    Send,
)
from tests.models import Book  # noqa: E402

django_application = get_asgi_application()

# The server imports this module in its loop: whatever uses a wrapper meanwhile makes one, in the
# context that all requests begin in.
connections["default"].tenant = "import"


async def authors(scope: Scope, receive: Receive, send: Send) -> None:
    """A WebSocket that answers the title of each book with the name of its author."""
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        book = await Book.objects.aget(title=message["text"])
        await send({"type": "websocket.send", "text": book.author.name})


async def author(scope: Scope, receive: Receive, send: Send) -> None:
    """A plain HTTP application that answers with the name of the author of the book."""
    book = await Book.objects.aget()
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": book.author.name.encode()})


async def route(scope: Scope, receive: Receive, send: Send) -> None:
    """Hand WebSockets, plain HTTP and the rest to those that serve them."""
    if scope["type"] == "websocket":
        await authors(scope, receive, send)
    elif scope["type"] == "http" and scope["path"] == "/plain/":
        await author(scope, receive, send)
    else:
        await django_application(scope, receive, send)


application = LifespanApplication(BridgedApplication(route))
