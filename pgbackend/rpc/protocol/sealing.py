"""The outermost form of messages and answers: ``v1.<key id>.<mac>.<body>``, one text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from .errors import Malformed, TooLarge, UnknownVersion
from .json_text import loaded
from .keys import Keys

# The longest text before a body: version, id of the key, seal, and the dots.
_HEAD = re.compile(rb"v1\.([A-Za-z0-9_-]{1,64})\.([0-9a-f]{64}|-)\.")
_OTHER_VERSION = re.compile(rb"v[0-9]{1,9}\.")
_UNSEALED = b"v1.-.-."


@dataclass
class Sealed:
    """What is known so far of a text that is being opened."""

    key_id: str | None = None
    message_id: str | None = None


def sealed(body: str, keys: Keys, key_id: str, most: int | None, limit: str = "max_bytes") -> str:
    """Return *body* with its seal by the key *key_id*; raise `TooLarge` above *most* bytes.

    *limit* is the name of what limits them.
    """
    raw = body.encode("utf-8")
    text = f"v1.{key_id}.{keys.mac(key_id, raw)}.{body}"
    if most is not None and len(text) - len(body) + len(raw) > most:
        raise TooLarge(f"more than {most} bytes", {limit: most})
    return text


def unsealed(body: str) -> str:
    """Return *body* as what cannot be sealed is sent."""
    return _UNSEALED.decode() + body


def opened(
    wire: str | bytes, keys: Keys, most: int, depth: int, given: Sealed, limit: str = "max_bytes"
) -> Any:
    """Return the parsed body of *wire*, whose size, form and seal are checked, in that order.

    Up to *most* bytes are taken, which *limit* is the name of. The id of its key is noted in
    *given* once the seal is right; it stays None for what is not sealed. Nothing of the body is
    parsed before.
    """
    raw = _bytes(wire, most, limit)
    head = _HEAD.match(raw)
    if head is None:
        if not raw.startswith(b"v1.") and _OTHER_VERSION.match(raw):
            raise UnknownVersion("this is version 1")
        raise Malformed("a text has the form v1.<key id>.<seal>.<body>")
    body = raw[head.end() :]
    key_id, mac = head[1].decode(), head[2].decode()
    if key_id == "-" or mac == "-":
        if head[0] != _UNSEALED:
            raise Malformed("a key without a seal, or a seal without a key")
    else:
        keys.check(key_id, mac, body)
        given.key_id = key_id
    return loaded(body, depth)


def _bytes(wire: str | bytes, most: int, limit: str) -> bytes:
    """Return *wire* as bytes; raise `TooLarge` before it is converted where its length says so."""
    if len(wire) <= most:
        try:
            raw = wire.encode("utf-8") if isinstance(wire, str) else wire
        except UnicodeEncodeError:
            raise Malformed("the text is not UTF-8") from None
        if len(raw) <= most:
            return raw
    raise TooLarge(f"more than {most} bytes", {limit: most})
