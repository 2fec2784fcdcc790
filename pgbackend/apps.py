"""The application ``"pgbackend"``: first in ``INSTALLED_APPS``, it loads the backend early.

The application has no models. It changes Django's ``atomic`` and others for asynchronous code
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
        """Patch modules whose import was incomplete when the backend was loaded."""
        report_finished()
