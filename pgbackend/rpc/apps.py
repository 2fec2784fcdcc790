"""The application "pgbackend.rpc" of a service's client: checks and commands."""

from django.apps import AppConfig


class RpcConfig(AppConfig):
    name = "pgbackend.rpc"
    label = "pgbackend_rpc"
    verbose_name = "Models of services"

    def ready(self) -> None:
        """Register the check that asks services what they expose."""
        from . import checks

        checks.register()
