"""Passwords stay out of tracebacks.

Debug pages, error mails and error trackers show the locals of each frame that an exception has
passed. Frames of Django's, psycopg's and ours that had connection arguments among theirs are
cleared before the exception leaves the backend.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

# By Django's settings and by libpq: what is secret among connection arguments.
SECRETS = (
    "PASSWORD",
    "password",
    "sslpassword",
    "oauth_client_secret",
    "scram_client_key",
    "scram_server_key",
)

# Frames of an application's own are left as they are: what it keeps there is its own.
_MODULES = ("django.", "psycopg.", "psycopg_pool.", "pgbackend.")

# How deep containers are looked into: settings are nested that deep.
_DEPTH = 4


def secrets_of(settings: dict[str, Any]) -> set[str]:
    """Return the secrets in the settings of an alias."""
    options = settings.get("OPTIONS") or {}
    values = [places.get(name) for places in (settings, options) for name in SECRETS]
    return {value for value in values if isinstance(value, str) and value}


def without_passwords(method: F) -> F:
    """Return a method of a database wrapper that clears such frames before it raises."""

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except BaseException as error:
            forget_passwords(error, secrets_of(self.settings_dict))
            raise

    return call  # type: ignore[return-value]  # of the same type


def forget_passwords(error: BaseException, secrets: Iterable[str] = ()) -> None:
    """Clear the frames in the tracebacks of *error*, and of what led to it, that hold a password.

    Those that have ended already: whoever calls this must not hold one.
    """
    secrets = tuple(secrets)
    found: list[BaseException | None] = [error]
    seen = set()
    while found:
        each = found.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        found += [each.__cause__, each.__context__, *getattr(each, "exceptions", ())]
        traceback = each.__traceback__
        while traceback is not None:
            frame = traceback.tb_frame
            name = str(frame.f_globals.get("__name__", ""))
            if name.startswith(_MODULES) and _holds(list(frame.f_locals.values()), secrets):
                # A frame that still runs cannot be cleared.
                with suppress(RuntimeError):
                    frame.clear()
            traceback = traceback.tb_next


def _holds(value: Any, secrets: tuple[str, ...], depth: int = _DEPTH) -> bool:
    if isinstance(value, str):
        # Of a conninfo string, too, whoever's password it is.
        return "password=" in value or any(secret in value for secret in secrets)
    if not depth:
        return False
    if isinstance(value, dict):
        return any(value.get(name) for name in SECRETS) or _holds(
            list(value.values()), secrets, depth - 1
        )
    if isinstance(value, list | tuple):
        return any(_holds(each, secrets, depth - 1) for each in value)
    return False
