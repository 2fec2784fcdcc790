"""Requests to an ASGI application in this process, sent as a server does: one message at a time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import urlencode, urlsplit

from django.core.handlers.asgi import ASGIHandler
from django.test import override_settings

from tests.site import settings
from tests.support.limits import PATIENCE

SITE = {
    name: getattr(settings, name)
    for name in ("ALLOWED_HOSTS", "LOGIN_URL", "MIDDLEWARE", "ROOT_URLCONF", "TEMPLATES")
}


@contextmanager
def serving(**settings: Any) -> Iterator[Client]:
    """Serve `site.pages` with other *settings* while the block runs."""
    with override_settings(**{**SITE, **settings}):
        yield Client(ASGIHandler())


@dataclass(frozen=True)
class Answer:
    """What an application sent for a request."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def __getitem__(self, header: str) -> str:
        return dict(self.headers)[header]

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        """Return the body of a successful answer, as data."""
        assert self.status == 200, (self.status, self.text)
        return json.loads(self.body)


class Exchange:
    """One request on its way: what the application sends, and whether the client is there."""

    def __init__(self, application: Any, scope: dict[str, Any], body: bytes) -> None:
        self.application = application
        self.scope = scope
        self.sent: list[dict[str, Any]] = []
        self._body: bytes | None = body
        self._gone = asyncio.Event()
        self._wrote = asyncio.Event()

    async def run(self) -> Answer:
        """Serve the request and return the answer."""
        await self.application(*self.protocol)
        return self.answer()

    @property
    def protocol(self) -> tuple[dict[str, Any], Any, Any]:
        """What the application is called with: scope, receive and send."""
        return self.scope, self._receive, self._send

    def answer(self) -> Answer:
        """Return what was sent so far."""
        start = self.sent[0]
        headers = [(name.decode().title(), value.decode()) for name, value in start["headers"]]
        body = b"".join(message.get("body", b"") for message in self.sent[1:])
        return Answer(start["status"], headers, body)

    def disconnect(self) -> None:
        """Let the client go away."""
        self._gone.set()

    async def wrote(self, words: bytes) -> None:
        """Wait until *words* were sent in the body; TimeoutError after PATIENCE."""
        async with asyncio.timeout(PATIENCE):
            while not any(words in message.get("body", b"") for message in self.sent):
                self._wrote.clear()
                await self._wrote.wait()

    async def _receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)
        self._wrote.set()


class Client:
    """Sends requests to an application and keeps its cookies, as a browser does."""

    def __init__(self, application: Any) -> None:
        self.application = application
        self.cookies: dict[str, str] = {}

    def open(
        self, address: str, *, method: str = "GET", body: bytes = b"", **headers: str
    ) -> Exchange:
        """Return a request that is not yet served. Underscores in *headers* stand for hyphens."""
        url = urlsplit(address)
        if self.cookies:
            headers["cookie"] = "; ".join(f"{name}={each}" for name, each in self.cookies.items())
        headers = {"host": "testserver", "content_length": str(len(body)), **headers}
        scope = {
            "type": "http",
            "method": method,
            "scheme": "http",
            "path": url.path,
            "query_string": url.query.encode(),
            "headers": [
                (name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()
            ],
            "server": ("testserver", 80),
            "client": ("127.0.0.1", 1024),
        }
        return Exchange(self.application, scope, body)

    async def get(self, address: str, **headers: str) -> Answer:
        """Send a GET request and return the answer."""
        return self._keep_cookies(await self.open(address, **headers).run())

    async def post(self, address: str, data: dict[str, Any], *, csrf: bool = True) -> Answer:
        """Post a form, with the CSRF token of a page fetched before, and return the answer."""
        headers = {"content_type": "application/x-www-form-urlencoded"}
        if csrf:
            headers["x_csrftoken"] = self.cookies["csrftoken"]
        body = urlencode(data, doseq=True).encode()
        exchange = self.open(address, method="POST", body=body, **headers)
        return self._keep_cookies(await exchange.run())

    def _keep_cookies(self, answer: Answer) -> Answer:
        for name, value in answer.headers:
            if name == "Set-Cookie":
                for morsel in SimpleCookie(value).values():
                    if morsel["max-age"] == "0" or not morsel.value:
                        self.cookies.pop(morsel.key, None)
                    else:
                        self.cookies[morsel.key] = morsel.value
        return answer
