"""The project's settings that this backend reads, beside ``DATABASES``.

=============================  ===========  ======================================================
setting                        default      meaning
=============================  ===========  ======================================================
``PGBACKEND_IMPLICIT_IO``      True         synchronous ORM access, lazy relations among it, works
                                            in the asynchronous code of a request; False: it
                                            raises SynchronousOnlyOperation, as in stock Django
``PGBACKEND_SYNC_ON_LOOP``     False        synchronous views, middleware, template rendering and
                                            receivers of request signals run on the event loop;
                                            False: in threads, as in stock Django
``PGBACKEND_BLOCKING_TIME``    0.1 or None  seconds after which code that holds the event loop is
                                            named in the log; None: never. 0.1 where DEBUG is on
``PGBACKEND_CLIENT_TIMEOUT``   30           seconds that a client may read nothing of its response
                                            while that has a connection on loan; None: for ever
``PGBACKEND_RPC``              {}           what a service of pgbackend.rpc is told: see
                                            pgbackend.rpc.server.settings
=============================  ===========  ======================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured


def implicit_io() -> bool:
    """Return ``PGBACKEND_IMPLICIT_IO``."""
    return _switch("PGBACKEND_IMPLICIT_IO", True)


def sync_on_loop() -> bool:
    """Return ``PGBACKEND_SYNC_ON_LOOP``."""
    return _switch("PGBACKEND_SYNC_ON_LOOP", False)


def blocking_time() -> float | None:
    """Return ``PGBACKEND_BLOCKING_TIME``, in seconds."""
    name = "PGBACKEND_BLOCKING_TIME"
    return _seconds(name, getattr(settings, name, 0.1 if settings.DEBUG else None))


def client_timeout() -> float | None:
    """Return ``PGBACKEND_CLIENT_TIMEOUT``, in seconds."""
    name = "PGBACKEND_CLIENT_TIMEOUT"
    return _seconds(name, _read(name, 30.0))


def rpc() -> dict[str, Any]:
    """Return ``PGBACKEND_RPC``, whose entries pgbackend.rpc reads and checks."""
    # A miss is not kept, as _read would: a request does not read it, and a dictionary can change.
    entries = getattr(settings, "PGBACKEND_RPC", {})
    if not isinstance(entries, dict):
        raise ImproperlyConfigured(f"PGBACKEND_RPC is a dictionary, not {entries!r}")
    return entries


def _seconds(name: str, seconds: Any) -> float | None:
    if seconds is None:
        return None
    if (
        isinstance(seconds, bool)
        or not isinstance(seconds, int | float)
        or not 0 < seconds < math.inf
    ):
        raise ImproperlyConfigured(f"{name} is a number of seconds or None, not {seconds!r}")
    return float(seconds)


def _switch(name: str, default: bool) -> bool:
    value = _read(name, default)
    if not isinstance(value, bool):
        raise ImproperlyConfigured(f"{name} is True or False, not {value!r}")
    return value


def _read(name: str, default: Any) -> Any:
    try:
        return getattr(settings, name)
    except AttributeError:
        # Django's settings keep values that they have found here, until a setting or all of them
        # are replaced. The default is kept there, too: a request reads it many times, and a miss
        # costs ten times as much.
        settings.__dict__[name] = default
        return default


# The settings, with the functions that read and check them.
SETTINGS: dict[str, Callable[[], Any]] = {
    "PGBACKEND_IMPLICIT_IO": implicit_io,
    "PGBACKEND_SYNC_ON_LOOP": sync_on_loop,
    "PGBACKEND_BLOCKING_TIME": blocking_time,
    "PGBACKEND_CLIENT_TIMEOUT": client_timeout,
    "PGBACKEND_RPC": rpc,
}
