from importlib import import_module

from django.apps import AppConfig


class KitchenConfig(AppConfig):
    name = "kitchen"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the listeners, and the triggers of the channels."""
        import_module("kitchen.tickets")
