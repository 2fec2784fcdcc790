"""The application ``"pgbackend.rpc.server"`` of a project that serves its models to others."""

from __future__ import annotations

from django.apps import AppConfig
from django.utils.module_loading import autodiscover_modules

from . import settings


class RpcServerConfig(AppConfig):
    name = "pgbackend.rpc.server"
    label = "pgbackend_rpc_server"
    verbose_name = "RPC server"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Import the module ``rpc`` of each application, where projects call `expose`.

        Whoever listens to the project's channels answers the messages that are stored for it: see
        ``LISTEN`` of the setting.
        """
        autodiscover_modules("rpc")
        # Not above: they import what needs the applications' models.
        from . import checks

        checks.register()
        if (alias := settings.listens()) is not None:
            # Not above: it needs pgbackend.pubsub, which other transports do not.
            from ..transports import postgres_service

            postgres_service.serve(alias)
