"""From a service's errors to those that callers of Django's ORM expect."""

from __future__ import annotations

from typing import Any

from django import db
from django.core import exceptions
from django.db import models

from .protocol import errors


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
    """Return the error with the messages that the service has given: by field, or a list."""
    found = error.details.get("messages")
    if isinstance(found, dict):
        return exceptions.ValidationError({str(name): list(each) for name, each in found.items()})
    if not isinstance(found, list):
        return exceptions.ValidationError(error.message)
    # A single one has its text in `message`, as that of a plain text has.
    return exceptions.ValidationError(found[0] if len(found) == 1 else found)
