"""The application ``"pgbackend.pubsub"``."""

from __future__ import annotations

from importlib.util import find_spec

import django
from django.apps import AppConfig
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import request_started


class PgpubsubConfig(AppConfig):
    # The class has the name of django-pgpubsub's, for INSTALLED_APPS; see `as_pgpubsub`.
    name = "pgbackend.pubsub"
    # The label of django-pgpubsub: its table, content type, permissions and migrations go on.
    label = "pgpubsub"
    verbose_name = "Notifications"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Let no request begin with the context of another, and register the checks and the worker.

        Raise ImproperlyConfigured where django-pgtrigger is missing.
        """
        if find_spec("pgtrigger") is None:
            raise ImproperlyConfigured(
                "pgbackend.pubsub needs django-pgtrigger: pip install 'pgbackend[pubsub]', and put"
                ' "pgtrigger" into INSTALLED_APPS'
            )
        from .. import asgi
        from .checks import register
        from .companion import CompanionWorker
        from .context import clear_context

        request_started.connect(clear_context, dispatch_uid="pgbackend.pubsub.clear_context")
        register()
        asgi.make_listener = CompanionWorker
        if django.VERSION >= (6, 0):
            from .tasks import register_channels

            register_channels()
