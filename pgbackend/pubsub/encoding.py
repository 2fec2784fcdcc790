"""Databases whose encoding is not UTF8: what they can store, and text that nobody can decode.

https://www.postgresql.org/docs/current/multibyte.html
"""

from __future__ import annotations

import codecs
import json
import re
from typing import Any

from django.db import connections

from .errors import PayloadError

# Python's codecs of databases; None: the database takes everything, or nobody knows.
_codecs: dict[tuple[Any, ...], str | None] = {}

_ESCAPED = re.compile(rb"\\(\\|[0-7]{3})")


def storable(alias: str, text: str) -> str:
    """Return *text* with escapes in place of what the database of *alias* cannot store."""
    if text.isascii() or (codec := codec_of(alias)) is None:
        return text
    return text.encode(codec, "backslashreplace").decode(codec)


def check_json(alias: str, what: str, text: str) -> None:
    """Raise PayloadError for JSON in ASCII that the database of *alias* cannot store."""
    if "\\u" not in text or (codec := codec_of(alias)) is None:
        return
    try:
        json.dumps(json.loads(text), ensure_ascii=False).encode(codec)
    except UnicodeEncodeError as error:
        raise PayloadError(
            f"{what}: {error.object[error.start]!r} is not in the encoding of the database"
            f" {alias!r}, {codec}"
        ) from None


def undo_escapes(text: str) -> str:
    """Return the text that ``encode(..., 'escape')`` has made *text* of.

    Bytes that are no UTF-8 become halves of surrogate pairs, as in names of files.
    """
    plain = _ESCAPED.sub(_unescaped, text.encode())
    return plain.decode(errors="surrogateescape")


def _unescaped(found: re.Match[bytes]) -> bytes:
    escaped = found[1]
    return escaped if escaped == b"\\" else bytes([int(escaped, 8)])


def codec_of(alias: str) -> str | None:
    """Return the codec of what the database of *alias* can store; None: everything."""
    wrapper: Any = connections[alias]
    key = (alias, *(wrapper.settings_dict[name] for name in ("HOST", "PORT", "NAME")))
    if key not in _codecs:
        with wrapper.cursor() as cursor:
            cursor.execute("SELECT pg_catalog.getdatabaseencoding()")
            _codecs[key] = _codec(cursor.fetchone()[0])
    return _codecs[key]


def _codec(encoding: str) -> str | None:
    if encoding == "UTF8":
        return None
    name = {"SQL_ASCII": "ascii", "KOI8R": "koi8_r", "KOI8U": "koi8_u"}.get(encoding, encoding)
    try:
        return codecs.lookup(name.replace("WIN", "cp")).name
    except LookupError:
        return None
