"""The models of the example project, which most pages use, in the database of the tests."""

from collections.abc import Iterator

import pytest
from django.apps import apps
from django.conf import settings
from django.core.management import call_command
from django.db import connection
from django.test import override_settings


@pytest.fixture(scope="package")
def kitchen() -> Iterator[None]:
    """The application `kitchen` is installed, and has its tables."""
    installed = [*settings.INSTALLED_APPS, "kitchen"]
    modules = {**settings.MIGRATION_MODULES, "kitchen": None}
    with override_settings(INSTALLED_APPS=installed, MIGRATION_MODULES=modules):
        call_command("migrate", run_syncdb=True, verbosity=0)
        connection.close()
        yield
        with connection.schema_editor() as editor:
            for model in reversed(list(apps.get_app_config("kitchen").get_models())):
                editor.delete_model(model)
        connection.close()
