from django.apps import AppConfig


class WaiterConfig(AppConfig):
    name = "proj.waiter"
    default_auto_field = "django.db.models.BigAutoField"
