"""The application's configuration."""

from django.apps import AppConfig


class SiteConfig(AppConfig):
    name = "tests.rpc.site"
    label = "rpc_site"
