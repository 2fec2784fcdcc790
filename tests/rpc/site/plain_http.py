"""An ASGI application that answers messages by `plain.handle`."""

from typing import Any

import django

django.setup()

from pgbackend import bridged  # noqa: E402
from pgbackend.asgi import LifespanApplication  # noqa: E402
from tests.rpc.site import plain  # noqa: E402

answer = bridged(plain.handle)


async def respond(scope: Any, receive: Any, send: Any) -> None:
    """Answer a POST."""
    body, more = b"", True
    while more:
        event = await receive()
        body, more = body + event.get("body", b""), event.get("more_body", False)
    text = body.decode()
    found = (
        "no answer"
        if text == "proxy"
        else "v1." + await answer(text.removeprefix("v1."), redelivered=False)
    )
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": found.encode()})


application = LifespanApplication(respond)
