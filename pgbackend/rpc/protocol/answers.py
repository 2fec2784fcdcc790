"""Answers, and how they are sealed and opened."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from .errors import BadValue, Malformed, RemoteError, error_of
from .json_text import dumped
from .keys import Keys
from .limits import Limits
from .messages import VERSION, is_time, look_at_version, milliseconds
from .names import is_hex, is_name
from .reading import Reader
from .sealing import Sealed, opened, sealed, unsealed
from .writing import Default, Writer

# Of an error's message, characters: it is for people.
LONGEST_MESSAGE = 2000


@dataclass(frozen=True)
class Outcome:
    """What came of one tree: its *value*, or the *error* instead."""

    value: Any = None
    error: RemoteError | None = None

    def result(self) -> Any:
        """Return the value, or raise the error."""
        if self.error is not None:
            raise self.error
        return self.value


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of a message: an outcome for each tree, or the *error* of the whole message.

    *id* is the message's, or None where that could not be read.
    """

    id: str | None
    time: int
    outcomes: tuple[Outcome, ...] = ()
    error: RemoteError | None = None


def refusal(error: RemoteError) -> Answer:
    """Return the answer to a message that was refused as a whole, its id where that was read."""
    return Answer(id=error.message_id, time=milliseconds(time.time()), error=error)


def seal_answer(
    answer: Answer,
    keys: Keys,
    key_id: str | None,
    limits: Limits | None = None,
    default: Default | None = None,
) -> str:
    """Return *answer* as it is sent, sealed by the key that sealed the message.

    Without a key the answer is not sealed; only the error of a whole message may be sent so. With
    *limits* raise `TooLarge`.
    """
    writer = Writer(default)
    body: dict[str, Any] = {"v": VERSION, "id": answer.id, "time": answer.time}
    if answer.error is not None:
        body["error"] = _error(answer.error, writer)
    else:
        body["results"] = [
            {"ok": writer.value(each.value)}
            if each.error is None
            else {"error": _error(each.error, writer)}
            for each in answer.outcomes
        ]
    if key_id is None:
        if answer.error is None:
            raise BadValue("an answer without a key has no results")
        return unsealed(dumped(body))
    most = limits.max_answer_bytes if limits else None
    return sealed(dumped(body), keys, key_id, most, "max_answer_bytes")


def _error(error: RemoteError, writer: Writer) -> dict[str, Any]:
    # What UTF-8 has not may stand in a message that quotes what was sent.
    text = error.message[:LONGEST_MESSAGE].encode("utf-8", "replace").decode("utf-8")
    details = {str(name): writer.value(each) for name, each in error.details.items()}
    return {"code": error.code, "message": text, "details": details}


def open_answer(
    wire: str | bytes,
    keys: Keys,
    limits: Limits | None = None,
    message_id: str | None = None,
) -> Answer:
    """Return the answer of *wire*.

    One that is not sealed is taken as an error alone, whose `sealed` is False: anybody on the way
    may have written it. With *message_id* raise `Malformed` for the answer to another message.
    Raise `TooLarge`, `Malformed`, `UnknownKey`, `BadSignature`, `UnknownVersion`.
    """
    limits = limits or Limits()
    given = Sealed()
    most = limits.max_answer_bytes
    body = opened(wire, keys, most, limits.max_depth, given, "max_answer_bytes")
    if not isinstance(body, dict):
        raise Malformed("the body is an object")
    look_at_version(body)
    if body.keys() not in ({"v", "id", "time", "results"}, {"v", "id", "time", "error"}):
        raise Malformed("an answer has the names v, id, time, and results or error")
    if not (body["id"] is None or is_hex(body["id"])) or not is_time(body["time"]):
        raise Malformed("an answer has the id of its message, or null, and a time")
    if "results" not in body:
        if body["id"] is not None and message_id not in (None, body["id"]):
            raise Malformed("the answer to another message")
        error = _read_error(body["error"], Reader())
        error.sealed = given.key_id is not None
        return Answer(id=body["id"], time=body["time"], error=error)
    if given.key_id is None:
        raise Malformed("an answer that is not sealed is an error alone")
    if body["id"] is None or message_id not in (None, body["id"]):
        raise Malformed("the answer to another message")
    if not isinstance(body["results"], list):
        raise Malformed("results are an array")
    reader = Reader()
    outcomes = tuple(_outcome(each, reader) for each in body["results"])
    return Answer(id=body["id"], time=body["time"], outcomes=outcomes)


def _outcome(item: Any, reader: Reader) -> Outcome:
    if not isinstance(item, dict) or item.keys() not in ({"ok"}, {"error"}):
        raise Malformed("a result has one name, ok or error")
    if "ok" in item:
        return Outcome(reader.value(item["ok"]))
    return Outcome(error=_read_error(item["error"], reader))


def _read_error(item: Any, reader: Reader) -> RemoteError:
    if not isinstance(item, dict) or item.keys() != {"code", "message", "details"}:
        raise Malformed("an error has the names code, message and details")
    code, text, details = item["code"], item["message"], item["details"]
    if not is_name(code) or not isinstance(text, str) or not isinstance(details, dict):
        raise Malformed("an error is a code, a text and an object")
    read = {str(reader.value(name)): reader.value(each) for name, each in details.items()}
    return error_of(code, str(reader.value(text)), read)
