"""The models of the example project, which most pages use, in the database of the tests."""

from collections.abc import Iterator
from importlib import import_module

import pytest
from django.apps import apps
from django.conf import settings
from django.core.management import call_command
from django.db import connection
from django.test import override_settings

from tests.support.fix_uvicorn import need_pgtrigger


@pytest.fixture(scope="package")
def kitchen() -> Iterator[None]:
    """The application `kitchen` is installed, and has its tables."""
    need_pgtrigger()
    installed = [*settings.INSTALLED_APPS, "kitchen"]
    modules = {**settings.MIGRATION_MODULES, "kitchen": None}
    with override_settings(INSTALLED_APPS=installed, MIGRATION_MODULES=modules):
        call_command("migrate", run_syncdb=True, verbosity=0)
        connection.close()
        yield
        forget_channels()
        with connection.schema_editor() as editor:
            for model in reversed(list(apps.get_app_config("kitchen").get_models())):
                editor.delete_model(model)
        connection.close()


def forget_channels() -> None:
    """Take the application's triggers and listeners back, whose tables are about to go."""
    pgtrigger = import_module("pgtrigger.registry")
    for model, trigger in pgtrigger.registered():
        if model._meta.app_label == "kitchen":
            pgtrigger.delete(f"{model._meta.label}:{trigger.name}")
    listeners = import_module("pgbackend.pubsub.registry").listeners
    for channel in list(listeners):
        if channel.__module__ == "kitchen.channels":
            del listeners[channel]
