"""Imports the channels when Django is ready."""

from importlib import import_module

from django.apps import AppConfig


class SiteConfig(AppConfig):
    name = "tests.benchmarks_pubsub.site_pgbackend"
    label = "bench"

    def ready(self) -> None:
        import_module("tests.benchmarks_pubsub.site_pgbackend.channels")
