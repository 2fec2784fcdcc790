"""The application ``"pgbackend.rpc.server"`` of a project that serves its models to others."""

from __future__ import annotations

from django.apps import AppConfig
from django.utils.module_loading import autodiscover_modules


class RpcServerConfig(AppConfig):
    name = "pgbackend.rpc.server"
    label = "pgbackend_rpc_server"
    verbose_name = "RPC server"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Import the module ``rpc`` of each application, where projects call `expose`."""
        autodiscover_modules("rpc")
