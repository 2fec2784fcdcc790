"""Imports the channels when Django is ready, as its README does."""

from importlib import import_module

from django.apps import AppConfig


class SiteConfig(AppConfig):
    name = "tests.benchmarks_pubsub.site_pgpubsub"
    label = "bench"

    def ready(self) -> None:
        import_module("tests.benchmarks_pubsub.site_pgpubsub.channels")
