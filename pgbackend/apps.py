"""The application ``"pgbackend"``: first in ``INSTALLED_APPS``, it loads the backend early.

It has no models. What Django's ``atomic`` and others are in asynchronous code is settled then
before any other application is imported.
"""

from __future__ import annotations

from django.apps import AppConfig

from . import base as base  # applies the patches
from .patches.import_hooks import report_finished


class PgBackendConfig(AppConfig):
    name = "pgbackend"
    verbose_name = "PostgreSQL on the event loop"

    def ready(self) -> None:
        """Patch what was in the middle of its import when the backend was loaded."""
        report_finished()
