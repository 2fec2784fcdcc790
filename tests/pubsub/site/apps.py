"""The application's configuration: it imports the listeners, as projects do."""

from importlib import import_module

from django.apps import AppConfig


class SiteConfig(AppConfig):
    name = "tests.pubsub.site"
    label = "pubsub_site"

    def ready(self) -> None:
        """Register the listeners."""
        import_module("tests.pubsub.site.listeners")
        import_module("tests.pubsub.site.jobs")
        import_module("tests.pubsub.site.fatal")
