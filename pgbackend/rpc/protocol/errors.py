"""Errors by stable code: one class each, the same in the server, the clients and the messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .invalid import Invalid, invalids


class RemoteError(Exception):
    """What the service answered instead of a result, or why there is no answer.

    *code* is stable, *message* is for people, *details* is a mapping of values that travel. Each
    code has a subclass of its name in `ERRORS`; a code that this version does not know is a plain
    `RemoteError`.

    *key_id* and *message_id* are those of a message that was refused, as far as it was read.
    *sealed* is False where the error came in an answer without a seal: anybody on the way may have
    written it.
    """

    code: str = "ServerError"
    key_id: str | None = None
    message_id: str | None = None
    sealed: bool = True

    def __init__(
        self,
        message: str = "",
        details: Mapping[str, Any] | None = None,
        *,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.details = dict(details or {})
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return f"{self.code}: {self.message}" if self.message else self.code

    def __reduce__(self) -> tuple[Any, ...]:
        return _remade, (self.code, self.message, self.details)


class ProtocolError(RemoteError):
    """The message itself is refused: its form, its seal, its age or its size."""


class Malformed(ProtocolError):
    """Not a message: not JSON, a value without its tag, a tree of another form."""

    code = "Malformed"


class UnknownVersion(ProtocolError):
    """A message of a version that this side does not speak."""

    code = "UnknownVersion"


class UnknownKey(ProtocolError):
    """The id of the key is none that this side accepts."""

    code = "UnknownKey"


class BadSignature(ProtocolError):
    """The seal is not that of these bytes by that key."""

    code = "BadSignature"


class Replayed(ProtocolError):
    """The message was already taken: its nonce is known."""

    code = "Replayed"


class DeadlinePassed(ProtocolError):
    """The deadline passed before the message was run, or before its answer came."""

    code = "DeadlinePassed"


class ClockSkew(ProtocolError):
    """The clocks of client and server differ by more than is allowed."""

    code = "ClockSkew"


class LimitError(ProtocolError):
    """More of something than the limits allow."""


class TooLarge(LimitError):
    """More bytes than a message or an answer may have."""

    code = "TooLarge"


class TooDeep(LimitError):
    """Values or nodes inside each other, more than are allowed."""

    code = "TooDeep"


class TooManyNodes(LimitError):
    """More values and nodes than a message may have."""

    code = "TooManyNodes"


class TooManyRows(LimitError):
    """More rows than an answer may have."""

    code = "TooManyRows"


class TooManyAffected(LimitError):
    """A write of more rows than are allowed; nothing was written."""

    code = "TooManyAffected"


class BatchTooLarge(LimitError):
    """More trees than a message may have."""

    code = "BatchTooLarge"


class TooManySubscriptions(LimitError):
    """More messages that wait for changes than one principal may have."""

    code = "TooManySubscriptions"


class Refused(RemoteError):
    """What the service does not let this principal do. What is not there answers alike."""


class NotExposed(Refused):
    """The model is not exposed, or there is none of that name."""

    code = "NotExposed"


class FieldNotAllowed(Refused):
    """A field or a path that is not exposed, or that is not there."""

    code = "FieldNotAllowed"


class LookupNotAllowed(Refused):
    """A lookup that is not exposed for that path."""

    code = "LookupNotAllowed"


class TransformNotAllowed(Refused):
    """A transform or a function that is not exposed for that path."""

    code = "TransformNotAllowed"


class OrderingNotAllowed(Refused):
    """Ordering by a path that is not exposed for it."""

    code = "OrderingNotAllowed"


class AggregateNotAllowed(Refused):
    """An aggregate that is not exposed."""

    code = "AggregateNotAllowed"


class MethodNotAllowed(Refused):
    """A manager method that is not exposed."""

    code = "MethodNotAllowed"


class OperationNotAllowed(Refused):
    """An operation or an end that is not exposed."""

    code = "OperationNotAllowed"


class PermissionDenied(Refused):
    """The principal may not do this."""

    code = "PermissionDenied"


class RequestError(RemoteError):
    """The request was run, and failed as a call of the ORM fails."""


class DoesNotExist(RequestError):
    """No row matches."""

    code = "DoesNotExist"


class MultipleObjectsReturned(RequestError):
    """More than one row matches."""

    code = "MultipleObjectsReturned"


class ValidationError(RequestError):
    """A value is invalid.

    `error_dict` has what is wrong by field, and is missing where it is of no field; `error_list`
    has all of it. Each has a text as `str()`, and `message`, `code` and `params` as Django's have.
    """

    code = "ValidationError"

    @property
    def error_dict(self) -> dict[str, list[Invalid]]:
        found = invalids(self.details)
        if not isinstance(found, dict):
            raise AttributeError("the error is of no field")
        return found

    @property
    def error_list(self) -> list[Invalid]:
        found = invalids(self.details)
        if isinstance(found, dict):
            return [each for below in found.values() for each in below]
        if found is None:
            return [Invalid(self.message)]
        return found if isinstance(found, list) else [found]


class IntegrityError(RequestError):
    """A constraint of the database forbids the write."""

    code = "IntegrityError"


class DataError(RequestError):
    """A value that the database does not take."""

    code = "DataError"


class OperationalError(RequestError):
    """The database could not run the statement."""

    code = "OperationalError"


class ProtectedError(RequestError):
    """Rows that refer to this one protect it."""

    code = "ProtectedError"


class RestrictedError(RequestError):
    """Rows that refer to this one restrict its deletion."""

    code = "RestrictedError"


class FieldError(RequestError):
    """The queryset cannot be built so."""

    code = "FieldError"


class NotUpdated(RequestError):
    """A save that had to update a row found none."""

    code = "NotUpdated"


class BadValue(RequestError, ValueError):
    """An argument of the wrong type or form."""

    code = "BadValue"


class StatementTimeout(RequestError):
    """A statement took longer than the service allows."""

    code = "StatementTimeout"


class NotRun(RequestError):
    """An earlier tree of the batch failed, so this one was not run."""

    code = "NotRun"


class Unavailable(RemoteError):
    """The service cannot be reached, or cannot answer now."""

    code = "Unavailable"


class ServerError(RemoteError):
    """The service failed; its log has the reason."""

    code = "ServerError"


def _leaves(kind: type[RemoteError]) -> list[type[RemoteError]]:
    """Return the classes below *kind* that have a code of their own."""
    found = [kind] if "code" in vars(kind) and kind is not RemoteError else []
    for each in kind.__subclasses__():
        found += _leaves(each)
    return found


ERRORS: Mapping[str, type[RemoteError]] = {each.code: each for each in _leaves(RemoteError)}


def error_of(code: str, message: str = "", details: Mapping[str, Any] | None = None) -> RemoteError:
    """Return the error of *code*; a plain `RemoteError` with that code where it is unknown."""
    kind = ERRORS.get(code)
    return kind(message, details) if kind else RemoteError(message, details, code=code)


def _remade(code: str, message: str, details: Mapping[str, Any]) -> RemoteError:
    """Return what was pickled."""
    return error_of(code, message, details)
