"""Which stored notifications the listeners of this process handle."""

from __future__ import annotations

from typing import Protocol

from django.core.exceptions import ImproperlyConfigured
from django.db.models import Q
from django.utils.module_loading import import_string

from . import settings


class ListenerFilterProvider(Protocol):
    """The class that ``PGPUBSUB_LISTENER_FILTER`` names."""

    def get_filter(self) -> Q:
        """Return the condition on `Notification` that a stored notification must meet."""
        ...


def listener_filter() -> Q | None:
    """Return the condition of the project's `ListenerFilterProvider`; None: there is none.

    Raise ImproperlyConfigured where ``PGPUBSUB_LISTENER_FILTER`` names no such class.
    """
    path = settings.listener_filter()
    if path is None:
        return None
    try:
        found: object = import_string(path)().get_filter()
    except (ImportError, TypeError, AttributeError) as error:
        raise ImproperlyConfigured(
            f"PGPUBSUB_LISTENER_FILTER is {path!r}, which is no class with get_filter(): {error}"
        ) from error
    if not isinstance(found, Q):
        raise ImproperlyConfigured(f"get_filter() of {path} returned {found!r}; return a Q")
    return found or None
