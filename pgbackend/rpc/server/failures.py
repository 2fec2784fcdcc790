"""What was raised while a tree was run, as an error with a code that travels.

The texts of Django and of the server name columns, other rows' values and code: none of them is
sent, but for those about a value that the message itself had.
"""

from __future__ import annotations

import logging
import traceback
from typing import Any

from django.core import exceptions
from django.db import utils
from django.db.models import ProtectedError, RestrictedError

from ..protocol import errors
from .invalid import details_of
from .settings import Service

logger = logging.getLogger("pgbackend.rpc.server")

# Of the server's: a statement was stopped, for its timeout.
_QUERY_CANCELED = "57014"


def failure(
    error: Exception, service: Service, *, of_values: bool = False, quoted: bool = False
) -> errors.RemoteError:
    """Return *error* as one that travels; what has no code is logged, and arrives as ServerError.

    With *of_values* a ValueError or TypeError is about the message's own values; its text is sent
    if no code but Django's has run, and it may be *quoted*.
    """
    found = _coded(error, of_values, quoted)
    if found.code == "ServerError":
        logger.error("a tree failed", exc_info=error)
    if service.tracebacks and not isinstance(error, errors.RemoteError):
        found.details["traceback"] = "".join(traceback.format_exception(error))[-20_000:]
    return found


def _coded(error: Exception, of_values: bool, quoted: bool) -> errors.RemoteError:
    if isinstance(error, errors.RemoteError):
        return error
    if isinstance(error, exceptions.ValidationError):
        return _of_values(error)
    if isinstance(error, exceptions.ObjectDoesNotExist):
        return errors.DoesNotExist("no row matches")
    if isinstance(error, exceptions.MultipleObjectsReturned):
        return errors.MultipleObjectsReturned("more than one row matches")
    if isinstance(error, exceptions.PermissionDenied):
        return errors.PermissionDenied("the service does not permit it")
    if isinstance(error, ProtectedError):
        return errors.ProtectedError("rows refer to it, and protect it")
    if isinstance(error, RestrictedError):
        return errors.RestrictedError("rows refer to it, and restrict it")
    if isinstance(error, utils.DatabaseError | utils.InterfaceError):
        return _of_database(error)
    if isinstance(error, exceptions.FieldError):
        return errors.FieldError("the queryset cannot be built so")
    if isinstance(error, exceptions.EmptyResultSet | exceptions.FullResultSet):
        return errors.FieldError("the queryset cannot be built so")
    if isinstance(error, NotImplementedError) and of_values:
        # Django's word for combinations of its methods that have no SQL.
        return errors.FieldError("the queryset cannot be built so")
    if isinstance(error, RecursionError):
        return errors.TooDeep("the message is too deep")
    if isinstance(error, ValueError | TypeError | OverflowError | ArithmeticError) and of_values:
        text = f": {error}" if quoted else ""
        return errors.BadValue(f"a value or an argument does not fit{text}"[:500])
    return errors.ServerError("the service failed; its log says why")


def _of_values(error: exceptions.ValidationError) -> errors.RemoteError:
    try:
        details = details_of(error)
    except Exception as wrong:
        # Its text does not take its params: an error of the project's.
        logger.error("a ValidationError has no text", exc_info=wrong)
        return errors.ServerError("the service failed; its log says why")
    return errors.ValidationError("the values are not valid", details)


def _of_database(error: Exception) -> errors.RemoteError:
    cause = error.__cause__
    state = getattr(cause, "sqlstate", None) or ""
    constraint = getattr(getattr(cause, "diag", None), "constraint_name", None)
    details: dict[str, Any] = {"sqlstate": state}
    if constraint:
        details["constraint"] = constraint
    if state == _QUERY_CANCELED:
        return errors.StatementTimeout("a statement took longer than is allowed", details)
    if isinstance(error, utils.IntegrityError):
        return errors.IntegrityError("a constraint of the database forbids it", details)
    if isinstance(error, utils.DataError):
        return errors.DataError("the database does not take a value", details)
    # The classes of the SQL standard: 22 data, 42 syntax and names. The message's types did not
    # fit each other.
    if state[:2] == "22":
        return errors.DataError("the database does not take a value", details)
    if isinstance(error, utils.ProgrammingError | utils.NotSupportedError):
        return errors.FieldError("the queryset cannot be run so", details)
    return errors.OperationalError("the database could not run the statement", details)
