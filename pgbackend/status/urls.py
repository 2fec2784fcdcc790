"""The page for ``include``: ``path("status/", include("pgbackend.status.urls"))``.

With another test of who may see it:

    path("status/", include(patterns(lambda user: user.has_perm("site.see_status"))))
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.urls import path

from .views import AssetView, EventsView, PageView, is_active_staff

__all__ = ["patterns"]

app_name = "pgbackend_status"


def patterns(allowed: Callable[[Any], Any] = is_active_staff) -> tuple[list[Any], str]:
    """Return what ``include`` takes: the page for the users that *allowed* returns True for.

    *allowed* gets the user, who may be an AnonymousUser. It may be a coroutine function.
    """
    found = [
        path("", PageView.as_view(allowed=allowed), name="page"),
        path("events", EventsView.as_view(allowed=allowed), name="events"),
        path("status.css", AssetView.as_view(name="status.css"), name="css"),
        path("status.js", AssetView.as_view(name="status.js"), name="js"),
    ]
    return found, app_name


urlpatterns = patterns()[0]
