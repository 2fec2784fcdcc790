"""A service that knows the protocol alone: it answers what it was asked, sealed, by HTTP.

It needs no Django, so clients without Django can be tested in a process without Django. What an
ORM does with a message is tested elsewhere.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pgbackend.rpc.protocol import nodes
from pgbackend.rpc.protocol.answers import Answer, Outcome, refusal, seal_answer
from pgbackend.rpc.protocol.errors import DoesNotExist, RemoteError
from pgbackend.rpc.protocol.keys import Keys
from pgbackend.rpc.protocol.limits import Limits
from pgbackend.rpc.protocol.messages import Message, open_message
from pgbackend.rpc.protocol.trees import encode_tree

SECRETS = {"k1": "0123456789abcdef0123456789abcdef", "k2": "fedcba9876543210fedcba9876543210"}
KEYS = Keys("k1", SECRETS, {"k2": ["ada"]})

SHAPE = nodes.Shape(
    "kitchen.Dish",
    ("id", "name"),
    {"station": nodes.Shape("kitchen.Station", ("id",), pk=("id",))},
    (nodes.Prefetched("tags", nodes.Shape("kitchen.Tag", ("id",), pk=("id",))),),
    ("id",),
)
ROWS = [[1, "Soup", [7], [[3], [4]]], [2, "Tea", None, []]]


def answer_of(message: Message, tree: nodes.Tree) -> Any:
    """Return the value for one tree: rows that are always the same, or the tree's own arguments."""
    end = tree.end
    kinds = {op.name: op for op in tree.ops if op.name in ("values", "values_list")}
    match end.name:
        case "rows" if "values_list" in kinds:
            named = kinds["values_list"].kwargs.get("named")
            kind = "named" if named else "flat" if kinds["values_list"].kwargs else "tuple"
            width = 1 if kind == "flat" else 2
            shape = nodes.Shape(fields=("id", "name")[:width])
            return nodes.Rows(kind, shape, [row[:width] for row in ROWS])
        case "rows" if "values" in kinds:
            return nodes.Rows("dict", nodes.Shape(fields=("id", "name")), [r[:2] for r in ROWS])
        case "rows" | "bulk_create":
            return nodes.Rows("model", SHAPE, ROWS)
        case "get" if end.args == ():
            if any(op.name == "none" for op in tree.ops):
                raise DoesNotExist("there is no such dish")
            return nodes.Rows("model", SHAPE, ROWS[:1])
        case "first" | "last" if any(op.name == "none" for op in tree.ops):
            return None
        case "first" | "last" | "latest" | "earliest" | "create" | "insert" | "save":
            return nodes.Rows("model", SHAPE, ROWS[:1])
        case "get_or_create" | "update_or_create":
            return nodes.Rows("model", SHAPE, ROWS[:1]), True
        case "in_bulk":
            return {row[0]: nodes.Rows("model", SHAPE, [row]) for row in ROWS}
        case "aggregate":
            return dict.fromkeys(end.kwargs, 20)
        case "call" if end.args[0] == "echo":
            return list(end.args[1:])
        case "call" if end.args[0] == "principal":
            return message.principal
        case "call" if end.args[0] == "sleep":
            time.sleep(end.args[1])
            return None
    # What was asked, as text.
    return nodes.Json(encode_tree(tree))


def handle(wire: str | bytes) -> str:
    """Return the answer to *wire*."""
    try:
        message = open_message(wire, KEYS, Limits())
    except RemoteError as error:
        return seal_answer(refusal(error), KEYS, error.key_id)
    outcomes = []
    for tree in message.trees:
        try:
            outcomes.append(Outcome(answer_of(message, tree)))
        except RemoteError as error:
            outcomes.append(Outcome(error=error))
    answer = Answer(id=message.id, time=int(time.time() * 1000), outcomes=tuple(outcomes))
    return seal_answer(answer, KEYS, message.key_id)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    # Of this connection.
    requests = 0

    def setup(self) -> None:
        super().setup()
        with self.server.lock:
            self.server.connections += 1

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers["Content-Length"]))
        status, answer = 200, b"<html>not here"
        self.requests += 1
        match self.path:
            case "/rpc":
                answer = handle(text).encode()
            case "/closing":
                answer = handle(text).encode()
                self.close_connection = True
            case "/dropping" if self.requests == 1:
                answer = handle(text).encode()
            case "/dropping":
                self.server.dropped.append(text)
                self.close_connection = True
                return
            case "/cut":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b"v1.k1.")
                self.close_connection = True
                return
            case _:
                status = 404
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_args: Any) -> None:
        """Write nothing."""


class Echo(ThreadingHTTPServer):
    """The service at `url`; `connections` counts those that were made."""

    daemon_threads = True

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.connections = 0
        # What was taken and not answered, as by a process that is killed.
        self.dropped: list[bytes] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, *_args: Any) -> None:
        """Write nothing of clients that went away; other errors are for the tests to see."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(*_args)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serving() -> Iterator[Echo]:
    """Return the service while it runs, in a thread."""
    server = Echo()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
