"""What a NOTIFY carries.

==================  ===============================================================================
text                meaning
==================  ===============================================================================
``{...}``           a plain notification: the payload itself
``@17``             a plain notification whose payload is in row 17, state "plain", for an hour:
                    it is longer than NOTIFY allows
``#17``             row 17 of a stored channel is there to be claimed
``#``               some rows of a stored channel are
(nothing)           django-pgpubsub's `process_stored_notifications`: the same
==================  ===============================================================================

A stored channel's NOTIFY is nothing but a hint: what it says is in the table. So is the payload of
a trigger made by django-pgpubsub, which sends to a stored channel what it stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

WAKE = "#"


@dataclass(frozen=True, slots=True)
class Wire:
    """A parsed NOTIFY: *kind*, the *id* of a row where there is one, and the *payload* if plain."""

    kind: Literal["plain", "reference", "stored"]
    id: int | None = None
    payload: str | None = None


_ANY_ROW = Wire("stored")


def parse(text: str) -> Wire:
    """Return what the *text* of a NOTIFY says. Anything that is not of a form above is plain."""
    match text[:1]:
        case "" | "#":
            return Wire("stored", int(text[1:])) if _is_id(text[1:]) else _ANY_ROW
        case "@" if _is_id(text[1:]):
            return Wire("reference", int(text[1:]))
        case _:
            return Wire("plain", payload=text)


def _is_id(text: str) -> bool:
    # No id has more digits, and int() takes no more than some thousand.
    return text.isdecimal() and len(text) < 19
