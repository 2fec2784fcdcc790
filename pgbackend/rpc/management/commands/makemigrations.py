"""Django's command, without the models of services."""

from django.core.management.commands import makemigrations

from ...autodetector import RpcAutodetector


class Command(makemigrations.Command):
    autodetector = RpcAutodetector
