"""The transport over HTTP: a message is the body of a POST, its answer that of the response."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import httpx
from django.core.exceptions import ImproperlyConfigured

from ...futures.result import Future
from ..protocol.errors import RemoteError, TooLarge, Unavailable
from ..protocol.limits import Limits
from .pending import Pending
from .threaded import ThreadedTransport

CONTENT_TYPE = "application/vnd.pgbackend.rpc"

# How many connections a process has to the service at most.
CONNECTIONS = 20

# How long connecting may take, seconds.
CONNECT_TIMEOUT = 3.0


class HttpTransport(ThreadedTransport):
    """Sends messages to the view at *url*, on connections that are kept.

    *headers* go with each request: what a proxy before the service asks for. Of an answer no more
    is read than the `max_answer_bytes` of *limits*.
    """

    name = "rpc-http"

    def __init__(
        self, url: str, *, headers: dict[str, str] | None = None, limits: Limits | None = None
    ) -> None:
        super().__init__()
        self.url = url
        self._most = (limits or Limits()).max_answer_bytes
        self.headers = {"Content-Type": CONTENT_TYPE, **(headers or {})}
        # Of the thread's loop: that of messages, and that of those which wait in the service.
        self._clients: dict[bool, httpx.AsyncClient] = {}
        # What sends the messages that wait in the service, by their ids.
        self._waiting: dict[str, asyncio.Task[None]] = {}

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> HttpTransport:
        """Return the transport of an alias. Raise ImproperlyConfigured."""
        url = settings.get("URL")
        if not isinstance(url, str) or not url.startswith(("http://", "https://")):
            raise ImproperlyConfigured(
                f"the transport 'http' needs 'URL': the address of the service's view, not {url!r}"
            )
        limits = Limits(**settings.get("LIMITS", {}))
        return cls(url, headers=settings.get("HEADERS"), limits=limits)

    def client(self, waits: bool = False) -> httpx.AsyncClient:
        """Return the client of the thread's loop, made at the first use.

        Messages that wait in the service have one of their own, with as many connections as they
        are: they keep others from none.
        """
        if waits not in self._clients:
            limits = httpx.Limits(
                max_connections=None if waits else CONNECTIONS,
                max_keepalive_connections=CONNECTIONS,
            )
            timeout = httpx.Timeout(None, connect=CONNECT_TIMEOUT)
            self._clients[waits] = httpx.AsyncClient(
                limits=limits, timeout=timeout, headers=self.headers
            )
        return self._clients[waits]

    async def serve(self) -> None:
        """Keep the connections until the task is cancelled."""
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            clients, self._clients = self._clients, {}
            for each in clients.values():
                await each.aclose()

    def forked(self) -> None:
        """Forget the connections of the process that this one was forked from."""
        self._clients, self._waiting = {}, {}

    def hand_over(self, message_id: str, wire: str, urgent: bool, deadline: float) -> None:
        """Have the thread send a message; *urgent* changes nothing, as nothing waits here."""
        self.call(lambda: self.spawn(self._post(message_id, wire, deadline)))

    def send_waiting(self, wire: str, *, deadline: float) -> Future[str]:
        """Send a message that waits in the service; see `Transport.send_waiting`."""

        def hand_over(message_id: str) -> None:
            self.call(lambda: self._post_waiting(message_id, wire, deadline))

        return self.sent_by(hand_over, deadline)

    def _post_waiting(self, message_id: str, wire: str, deadline: float) -> None:
        task = self.spawn(self._post(message_id, wire, deadline, waits=True))
        self._waiting[message_id] = task
        task.add_done_callback(lambda _: self._waiting.pop(message_id, None))

    def forget(self, pending: Pending, message_id: str) -> None:
        """Wait for an answer no longer; a service that waits for changes is told by the end."""
        super().forget(pending, message_id)
        if (task := self._waiting.pop(message_id, None)) is not None:
            task.cancel()

    async def _post(
        self, message_id: str, wire: str, deadline: float, *, waits: bool = False
    ) -> None:
        try:
            async with asyncio.timeout(deadline - time.time()):
                self.pending.answer(message_id, await self._answer(wire, self.client(waits)))
        except TimeoutError:
            # `pending` says so.
            return
        except RemoteError as error:
            self.pending.fail(message_id, error)
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            words = f"{self.url} cannot be reached: {error or type(error).__name__}"
            self.pending.fail(message_id, Unavailable(words))

    async def _answer(self, wire: str, client: httpx.AsyncClient) -> str:
        body = bytearray()
        async with client.stream("POST", self.url, content=wire.encode()) as response:
            async for some in response.aiter_bytes():
                body += some
                if len(body) > self._most:
                    most = {"max_answer_bytes": self._most}
                    raise TooLarge(f"the answer has more than {self._most} bytes", most)
        # The service answers refusals, too, by a text of this form; anything else is a proxy's.
        if not body.startswith(b"v1."):
            raise Unavailable(f"{self.url} answered {response.status_code} without an answer")
        return body.decode()
