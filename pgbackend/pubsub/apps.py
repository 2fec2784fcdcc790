"""The application ``"pgbackend.pubsub"``."""

from __future__ import annotations

from django.apps import AppConfig


class PubsubConfig(AppConfig):
    name = "pgbackend.pubsub"
    # The label of django-pgpubsub: its table, content type, permissions and migrations go on.
    label = "pgpubsub"
    verbose_name = "Notifications"
    default_auto_field = "django.db.models.BigAutoField"
