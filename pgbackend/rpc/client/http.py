"""Messages by HTTP, with the standard library alone: each is the body of one POST."""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection, RemoteDisconnected
from urllib.parse import urlsplit

from ...futures.result import Future
from ..protocol.errors import DeadlinePassed, TooLarge, Unavailable
from ..protocol.limits import Limits
from ..transports.base import Transport

_CHUNK = 64 * 1024

# How many messages of a transport wait in the service at once; others wait for these.
WAITERS = 100


class HttpTransport(Transport):
    """The way to the view of a service at *url*, over *threads* connections that are kept open.

    *headers* are sent along; *context* is that of TLS, by default one that verifies certificates.
    *limits* bound the size of an answer. Raise ValueError for what is not a URL of HTTP.
    """

    def __init__(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        context: ssl.SSLContext | None = None,
        threads: int = 4,
        limits: Limits | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"url is http://… or https://…, not {url!r}")
        self.url = url
        self._parts = parts
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._headers = {"Content-Type": "text/plain; charset=utf-8", **(headers or {})}
        self._context = context
        self._most = (limits or Limits()).max_answer_bytes
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="pgbackend-rpc-http")
        # Messages that wait in the service keep others from no thread. One starts for each.
        self._waiters = ThreadPoolExecutor(WAITERS, thread_name_prefix="pgbackend-rpc-wait")
        self._local = threading.local()
        self._open: set[HTTPConnection] = set()
        # What was not answered yet.
        self._waiting: set[Future[str]] = set()
        # The connections of those that wait in the service.
        self._cut: dict[Future[str], HTTPConnection] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"

    def send(self, wire: str, *, urgent: bool, deadline: float) -> Future[str]:
        """Send *wire*; return a future of the answer's text. *urgent* makes no difference here.

        The future ends with `Unavailable`, `DeadlinePassed` or `TooLarge` where no answer came.
        """
        answer: Future[str] = Future.pending()
        self._submit(self._threads, wire, deadline, answer)
        return answer

    def send_waiting(self, wire: str, *, deadline: float) -> Future[str]:
        """Send a message that waits in the service; see `Transport.send_waiting`."""
        answer: Future[str] = Future.pending(on_cancel=lambda: self._stop(answer))
        self._submit(self._waiters, wire, deadline, answer)
        return answer

    def _submit(
        self, threads: ThreadPoolExecutor, wire: str, deadline: float, answer: Future[str]
    ) -> None:
        self._waiting.add(answer)
        try:
            threads.submit(self._exchange, wire, deadline, answer, threads is self._waiters)
        except RuntimeError:
            self._end_as_closed(answer)

    def _stop(self, answer: Future[str]) -> None:
        """Have the thread that waits for *answer* wait no longer, and the service neither."""
        connection = self._cut.get(answer)
        if connection is not None and connection.sock is not None:
            # It may have ended meanwhile.
            with suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connections; futures that wait for an answer end with `Unavailable`."""
        for threads in (self._threads, self._waiters):
            threads.shutdown(wait=False, cancel_futures=True)
        for answer in list(self._waiting):
            self._end_as_closed(answer)
        for connection in list(self._open):
            connection.close()

    def _end_as_closed(self, answer: Future[str]) -> None:
        self._waiting.discard(answer)
        answer.set_exception(Unavailable("the transport is closed"))

    def _exchange(self, wire: str, deadline: float, answer: Future[str], waits: bool) -> None:
        """Fill *answer*, in a thread of the pool."""
        try:
            # It may have been cancelled while it waited for a thread.
            if not answer.done():
                answer.set_result(self._answered(wire, deadline, answer, waits))
        except Exception as error:
            self._drop()
            answer.set_exception(_coded(error))
        finally:
            self._waiting.discard(answer)
            self._cut.pop(answer, None)

    def _answered(self, wire: str, deadline: float, answer: Future[str], waits: bool) -> str:
        """Return the answer; send once more where the service closed a kept connection meanwhile.

        A message that had arrived all the same is not run twice: its nonce is known by then.
        """
        kept = getattr(self._local, "connection", None) is not None
        try:
            return self._answer(wire, deadline, answer)
        except (RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            # One that waits had arrived, as a rule: sent again it would be refused as a replay, and
            # a subscription asks anew by itself.
            if not kept or answer.done() or waits:
                raise
            self._drop()
            return self._answer(wire, deadline, answer)

    def _answer(self, wire: str, deadline: float, answer: Future[str]) -> str:
        connection = self._cut[answer] = self._connection(deadline)
        connection.request("POST", self._path, wire.encode("utf-8"), self._headers)
        response = connection.getresponse()
        body = bytearray()
        while chunk := response.read1(_CHUNK):
            body += chunk
            if len(body) > self._most:
                raise TooLarge(f"more than {self._most} bytes", {"max_answer_bytes": self._most})
            _patient(connection, deadline)
        # Of a known length: `read1` takes an early end for the end.
        if response.length:
            raise Unavailable(f"{self.url} was cut off {response.length} bytes early")
        # After `read1` it is not closed by itself, and the connection would take no other request.
        response.close()
        if not body.startswith(b"v1."):
            raise Unavailable(f"{self.url} answered {response.status} {response.reason}")
        if response.will_close:
            self._drop()
        return body.decode("utf-8", "surrogateescape")

    def _connection(self, deadline: float) -> HTTPConnection:
        """Return this thread's connection, a new one where the service has closed the old one."""
        connection: HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is not None and connection.sock is not None:
            # Readable before anything was asked: its end.
            if not select.select([connection.sock], [], [], 0)[0]:
                _patient(connection, deadline)
                return connection
            self._drop()
        host, port = str(self._parts.hostname), self._parts.port
        left = _left(deadline)
        if self._parts.scheme == "https":
            connection = HTTPSConnection(host, port, timeout=left, context=self._context)
        else:
            connection = HTTPConnection(host, port, timeout=left)
        self._local.connection = connection
        self._open.add(connection)
        return connection

    def _drop(self) -> None:
        connection: HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is not None:
            connection.close()
            self._open.discard(connection)
            self._local.connection = None


def _left(deadline: float) -> float:
    """Return the seconds until *deadline*; raise `DeadlinePassed`."""
    left = deadline - time.time()
    if left <= 0:
        raise DeadlinePassed("no answer came before the deadline")
    return left


def _patient(connection: HTTPConnection, deadline: float) -> None:
    """Have *connection* wait until *deadline* and no longer."""
    left = _left(deadline)
    if connection.sock is not None:
        connection.sock.settimeout(left)


def _coded(error: Exception) -> Exception:
    """Return *error* as one with a code."""
    if isinstance(error, TimeoutError):
        return DeadlinePassed("no answer came before the deadline")
    if isinstance(error, OSError | HTTPException):
        return Unavailable(f"{type(error).__name__}: {error}")
    return error
