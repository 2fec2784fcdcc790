"""The project's settings that pgbackend.pubsub reads.

==========================================  =======  =============================================
setting                                     default  meaning
==========================================  =======  =============================================
``PGPUBSUB_TX_BOUND_NOTIFICATION_CONTEXT``  False    `set_notification_context` needs a
                                                     transaction and ends with it
``PGPUBSUB_LISTENER_FILTER``                None     dotted path of a `ListenerFilterProvider`:
                                                     which stored notifications are handled here
``PGPUBSUB_PASS_CONTEXT_TO_LISTENERS``      False    listeners of triggers are called with
                                                     ``context=``
``PGPUBSUB_OLD_NAMES``                      True     notifications under the names of
                                                     django-pgpubsub are understood, too
``PGPUBSUB_LISTEN_DSN``                     None     DSN, or one for each alias: what the
                                                     listening connection has other than the alias
==========================================  =======  =============================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.apps import apps
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured


def tx_bound_context() -> bool:
    """Return ``PGPUBSUB_TX_BOUND_NOTIFICATION_CONTEXT``."""
    return _switch("PGPUBSUB_TX_BOUND_NOTIFICATION_CONTEXT", False)


def listener_filter() -> str | None:
    """Return ``PGPUBSUB_LISTENER_FILTER``, a dotted path."""
    name = "PGPUBSUB_LISTENER_FILTER"
    value = getattr(settings, name, None)
    if value is not None and not isinstance(value, str):
        raise ImproperlyConfigured(f"{name} is the dotted path of a class or None, not {value!r}")
    return value or None


def pass_context() -> bool:
    """Return ``PGPUBSUB_PASS_CONTEXT_TO_LISTENERS``."""
    return _switch("PGPUBSUB_PASS_CONTEXT_TO_LISTENERS", False)


def old_names() -> bool:
    """Return ``PGPUBSUB_OLD_NAMES``."""
    return _switch("PGPUBSUB_OLD_NAMES", True)


def listen_dsn() -> str | dict[str, str] | None:
    """Return ``PGPUBSUB_LISTEN_DSN``: a DSN, or one for each alias."""
    name = "PGPUBSUB_LISTEN_DSN"
    value = getattr(settings, name, None)
    texts = [*value, *value.values()] if isinstance(value, dict) else [value]
    if value is not None and not all(isinstance(each, str) for each in texts):
        raise ImproperlyConfigured(
            f"{name} is a DSN, a dictionary of DSNs by alias, or None, not {value!r}"
        )
    return value


def require_installed() -> None:
    """Raise ImproperlyConfigured where the application is not in ``INSTALLED_APPS``.

    Before Django knows its applications nothing is said.
    """
    if apps.apps_ready and not apps.is_installed("pgbackend.pubsub"):
        raise ImproperlyConfigured(
            '"pgbackend.pubsub" is not in INSTALLED_APPS:'
            ' INSTALLED_APPS = [..., "pgtrigger", "pgbackend.pubsub"]'
        )


def _switch(name: str, default: bool) -> bool:
    value = getattr(settings, name, default)
    if not isinstance(value, bool):
        raise ImproperlyConfigured(f"{name} is True or False, not {value!r}")
    return value


# The settings, with the functions that read and check them.
SETTINGS: dict[str, Callable[[], Any]] = {
    "PGPUBSUB_TX_BOUND_NOTIFICATION_CONTEXT": tx_bound_context,
    "PGPUBSUB_LISTENER_FILTER": listener_filter,
    "PGPUBSUB_PASS_CONTEXT_TO_LISTENERS": pass_context,
    "PGPUBSUB_OLD_NAMES": old_names,
    "PGPUBSUB_LISTEN_DSN": listen_dsn,
}

# Bytes of a payload above which it goes through a row; the server refuses 8,000 and more.
MAX_PLAIN = 7900
