"""From a service's errors to those that callers of Django's ORM expect."""

from __future__ import annotations

from typing import Any

from django import db
from django.core import exceptions
from django.db import models

from .protocol import errors
from .protocol.invalid import Invalid, invalids
from .rows import plain


class RemoteStatementTimeout(errors.StatementTimeout, db.OperationalError):
    """A statement took longer than the service allows."""


_DATABASE = {
    "IntegrityError": db.IntegrityError,
    "DataError": db.DataError,
    "OperationalError": db.OperationalError,
}


def raised(error: BaseException, model: Any) -> BaseException:
    """Return the exception for *error*, of *model* where it has one; `__cause__` has the code."""
    if not isinstance(error, errors.RemoteError):
        return error
    made = _raised(error, model)
    if made is not error:
        made.__cause__ = error
    return made


def _raised(error: errors.RemoteError, model: Any) -> BaseException:
    text = error.message
    match error.code:
        case "DoesNotExist":
            name = model._meta.object_name
            return model.DoesNotExist(f"{name} matching query does not exist.")
        case "MultipleObjectsReturned":
            return model.MultipleObjectsReturned(text)
        case "NotUpdated":
            kind = getattr(model, "NotUpdated", db.DatabaseError)
            return kind(text)
        case "ValidationError":
            return _validation(error)
        case "IntegrityError" | "DataError" | "OperationalError":
            return _DATABASE[error.code](text)
        case "ProtectedError":
            return models.ProtectedError(text, set())
        case "RestrictedError":
            return models.RestrictedError(text, set())
        case "PermissionDenied":
            return exceptions.PermissionDenied(text)
        case "FieldError":
            return exceptions.FieldError(text)
        case "StatementTimeout":
            return RemoteStatementTimeout(text, error.details)
    return error


def _validation(error: errors.RemoteError) -> exceptions.ValidationError:
    """Return the error as it was raised in the service: by field, of a list, or of one text."""
    match invalids(error.details):
        case dict() as by_field:
            lists = {name: [_invalid(each) for each in below] for name, below in by_field.items()}
            return exceptions.ValidationError(lists)
        case list() as several:
            return exceptions.ValidationError([_invalid(each) for each in several])
        case None:
            return exceptions.ValidationError(error.message)
        case one:
            return _invalid(one)


def _invalid(found: Invalid) -> exceptions.ValidationError:
    # Django's stubs have codes of text alone.
    code: Any = found.code
    return exceptions.ValidationError(found.message, code, plain(found.params))
