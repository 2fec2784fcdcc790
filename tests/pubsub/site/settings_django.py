"""The tests' settings with Django's own backend: a synchronous project."""

from typing import Any

from tests.settings import *  # noqa: F403
from tests.settings import database

DATABASES: dict[str, Any] = {
    "default": {
        **database("pgbackend_tests"),
        "ENGINE": "django.db.backends.postgresql",
        # A session is then kept by its thread as listeners leave it.
        "CONN_MAX_AGE": None,
    },
}
DATABASE_ROUTERS: list[str] = []
