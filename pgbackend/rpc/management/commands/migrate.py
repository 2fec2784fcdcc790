"""Django's command, without the models of services; it has nothing to do for their aliases."""

from typing import Any

from django.core.management.commands import migrate
from django.db import connections

from ...autodetector import RpcAutodetector


class Command(migrate.Command):
    autodetector = RpcAutodetector

    def handle(self, *args: Any, **options: Any) -> None:
        alias = options["database"]
        if connections[alias].vendor == "rpc":
            if options["verbosity"] >= 1:
                self.stdout.write(f"{alias} is a service: it has no migrations here.")
            return
        super().handle(*args, **options)
