"""The application ``"pgbackend.pubsub"``."""

from __future__ import annotations

import django
from django.apps import AppConfig
from django.core.signals import request_started


class PubsubConfig(AppConfig):
    name = "pgbackend.pubsub"
    # The label of django-pgpubsub: its table, content type, permissions and migrations go on.
    label = "pgpubsub"
    verbose_name = "Notifications"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Let no request begin with the context of another, and register the checks."""
        from .checks import register
        from .context import clear_context

        request_started.connect(clear_context, dispatch_uid="pgbackend.pubsub.clear_context")
        register()
        if django.VERSION >= (6, 0):
            from .tasks import register_channels

            register_channels()
