"""Keep passwords out of tracebacks.

Debug pages, error mails and error trackers show the local variables of each frame that an exception
has passed. Before an exception leaves the backend, the frames of Django, psycopg and pgbackend that
held connection arguments are cleared.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

# The secret connection arguments, by the names of Django's settings and of libpq.
SECRETS = (
    "PASSWORD",
    "password",
    "sslpassword",
    "oauth_client_secret",
    "scram_client_key",
    "scram_server_key",
)

# Only frames of these packages are cleared; an application's own frames are left as they are.
_MODULES = ("django.", "psycopg.", "psycopg_pool.", "pgbackend.")

# How deep containers are searched: settings are nested that deep.
_DEPTH = 4


def secrets_of(settings: dict[str, Any]) -> set[str]:
    """Return the secrets in one alias's settings."""
    options = settings.get("OPTIONS") or {}
    values = [places.get(name) for places in (settings, options) for name in SECRETS]
    return {value for value in values if isinstance(value, str) and value}


def without_passwords(method: F) -> F:
    """Wrap a method of a database wrapper: clear frames with passwords before it raises."""

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except BaseException as error:
            forget_passwords(error, secrets_of(self.settings_dict))
            raise

    return call  # type: ignore[return-value]  # has the method's type


def forget_passwords(error: BaseException, secrets: Iterable[str] = ()) -> None:
    """Clear the frames with a password in the tracebacks of *error* and of its causes.

    Only frames that have ended can be cleared: the caller itself must not hold a password.
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
        # A conninfo string counts whoever's password it holds.
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
