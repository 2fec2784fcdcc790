"""The application's configuration."""

from django.apps import AppConfig


class WaiterConfig(AppConfig):
    name = "tests.rpc.waiter"
    label = "rpc_waiter"
