"""Messages, and how they are sealed and opened."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from .errors import (
    BadSignature,
    BadValue,
    BatchTooLarge,
    ClockSkew,
    DeadlinePassed,
    Malformed,
    RemoteError,
    UnknownVersion,
)
from .json_text import dumped
from .keys import Keys
from .limits import Limits
from .names import WRITES, is_hex, is_line, is_token, shown
from .nodes import Tree
from .reading import Reader
from .sealing import Sealed, opened, sealed
from .writing import Default, Writer

VERSION = 1

_MESSAGE = {
    *("v", "id", "client", "time", "deadline", "principal", "nonce", "idempotency", "atomic"),
    "trees",
}


@dataclass(frozen=True)
class Sender:
    """Where a message comes from, for the service's log; nothing is decided by it."""

    host: str = field(default_factory=socket.gethostname)
    process: int = field(default_factory=os.getpid)
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class Message:
    """What a client asks: *trees*, run in order. Times are milliseconds since the epoch.

    *idempotency* is the same each time that a write is sent again, *nonce* is not. With *atomic*
    all trees are run in one transaction. With *dry* all is run, answered and rolled back. *key_id*
    is the key that sealed the message.
    """

    trees: tuple[Tree, ...]
    time: int
    deadline: int
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    nonce: str = field(default_factory=lambda: secrets.token_hex(16))
    client: Sender = field(default_factory=Sender)
    principal: str | None = None
    idempotency: str | None = None
    atomic: bool = False
    dry: bool = False
    key_id: str = field(default="", compare=False)


def milliseconds(seconds: float) -> int:
    """Return a time in seconds since the epoch as messages have it."""
    return int(seconds * 1000)


def message_of(
    trees: Iterable[Tree],
    *,
    timeout: float,
    principal: str | None = None,
    name: str | None = None,
    atomic: bool = False,
    dry: bool = False,
    idempotency: str | None = None,
) -> Message:
    """Return a new message that expires in *timeout* seconds.

    One that may write gets an idempotency key unless it is given one.
    """
    asked = tuple(trees)
    if idempotency is None and any(writes(tree) for tree in asked):
        idempotency = secrets.token_hex(16)
    now = time.time()
    return Message(
        trees=asked,
        time=milliseconds(now),
        deadline=milliseconds(now + timeout),
        client=Sender(name=name),
        principal=principal,
        idempotency=idempotency,
        atomic=atomic,
        dry=dry,
    )


def writes(tree: Tree) -> bool:
    """Tell whether *tree* may change rows."""
    return tree.end.name in WRITES or tree.end.name == "call"


def seal_message(
    message: Message,
    keys: Keys,
    limits: Limits | None = None,
    default: Default | None = None,
) -> str:
    """Return *message* as it is sent, sealed by the current key.

    *default* is that of `encode`. With *limits* raise `TooLarge` and `BatchTooLarge`.
    """
    if limits is not None and len(message.trees) > limits.max_batch:
        raise BatchTooLarge(f"more than {limits.max_batch} trees", {"max_batch": limits.max_batch})
    writer = Writer(default)
    body = {
        "v": VERSION,
        "id": message.id,
        "client": {
            "host": message.client.host,
            "process": message.client.process,
            "name": message.client.name,
        },
        "time": message.time,
        "deadline": message.deadline,
        "principal": message.principal,
        "nonce": message.nonce,
        "idempotency": message.idempotency,
        "atomic": message.atomic,
        "trees": [writer.tree(tree) for tree in message.trees],
        # Left out where it is false.
        **({"dry": True} if message.dry else {}),
    }
    return sealed(dumped(body), keys, keys.current, limits.max_bytes if limits else None)


def open_message(
    wire: str | bytes,
    keys: Keys,
    limits: Limits,
    now: float | None = None,
) -> Message:
    """Return the message of *wire*; *now* is the time in seconds since the epoch.

    Raise a `RemoteError` for what is refused. Its `key_id` is the key that sealed the message, or
    None where no key is known to have sealed it, and its `message_id` the id if that was read.
    """
    given = Sealed()
    try:
        body = opened(wire, keys, limits.max_bytes, limits.max_depth, given)
        if given.key_id is None:
            raise BadSignature("a message is sealed")
        return _read_message(body, keys, limits, time.time() if now is None else now, given)
    except RemoteError as error:
        error.key_id, error.message_id = given.key_id, given.message_id
        raise


def _read_message(body: Any, keys: Keys, limits: Limits, now: float, given: Sealed) -> Message:
    if not isinstance(body, dict):
        raise Malformed("the body is an object")
    if is_hex(body.get("id")):
        given.message_id = body["id"]
    look_at_version(body)
    if body.keys() - {"dry"} != _MESSAGE:
        raise Malformed(f"a message has the names {', '.join(sorted(_MESSAGE))}")
    if given.message_id is None or not is_hex(body["nonce"]):
        raise Malformed("an id and a nonce are 32 hexadecimal digits")
    principal, idempotency = body["principal"], body["idempotency"]
    atomic, dry = body["atomic"], body.get("dry", False)
    if not (isinstance(atomic, bool) and isinstance(dry, bool)):
        raise Malformed("atomic and dry are true or false")
    if not (principal is None or is_line(principal)):
        raise Malformed("a principal is null or printable text")
    if not (idempotency is None or is_token(idempotency)):
        raise Malformed("an idempotency key is null or 1 to 100 characters of ASCII")
    _look_at_times(body, limits, now)
    assert given.key_id is not None
    return Message(
        id=body["id"],
        client=_sender(body["client"]),
        time=body["time"],
        deadline=body["deadline"],
        principal=keys.principal(given.key_id, principal),
        nonce=body["nonce"],
        idempotency=idempotency,
        atomic=atomic,
        dry=dry,
        trees=_trees(body["trees"], limits),
        key_id=given.key_id,
    )


def look_at_version(body: dict[str, Any]) -> None:
    """Raise `UnknownVersion` unless *body* is of this one."""
    if body.get("v") != VERSION or isinstance(body["v"], bool | float):
        raise UnknownVersion(f"this is version {VERSION}, not {shown(body.get('v'))}")


def is_time(value: Any) -> bool:
    """Tell whether *value* is an integer of milliseconds that every reader of JSON has."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _look_at_times(body: dict[str, Any], limits: Limits, now: float) -> None:
    sent, deadline = body["time"], body["deadline"]
    if not (is_time(sent) and is_time(deadline)):
        raise Malformed("a time is an integer of milliseconds since the epoch")
    here = milliseconds(now)
    if sent - here > limits.max_skew * 1000:
        raise ClockSkew(
            f"the message is from {(sent - here) / 1000:g} seconds after now",
            {"max_skew": float(limits.max_skew)},
        )
    if deadline <= here:
        raise DeadlinePassed(f"the deadline passed {(here - deadline) / 1000:g} seconds ago")
    if deadline - sent > limits.max_deadline * 1000:
        raise BadValue(
            f"the deadline is more than {limits.max_deadline:g} seconds after the message's time",
            {"max_deadline": float(limits.max_deadline)},
        )


def _sender(item: Any) -> Sender:
    if not isinstance(item, dict) or item.keys() != {"host", "process", "name"}:
        raise Malformed("a client has the names host, process and name")
    host, process, named = item["host"], item["process"], item["name"]
    if not is_line(host) or not is_time(process) or not (named is None or is_line(named)):
        raise Malformed("a client is a host's name, a process's number, and a name or null")
    return Sender(host, process, named)


def _trees(items: Any, limits: Limits) -> tuple[Tree, ...]:
    if not isinstance(items, list) or not items:
        raise Malformed("a message has one tree or more")
    if len(items) > limits.max_batch:
        raise BatchTooLarge(f"more than {limits.max_batch} trees", {"max_batch": limits.max_batch})
    reader = Reader(limits)
    trees = []
    for reader.index, item in enumerate(items):
        trees.append(reader.tree(item))
    return tuple(trees)
