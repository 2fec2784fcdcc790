"""The application "pgbackend" in INSTALLED_APPS, and what happens without it."""

import importlib

import pytest
from django.apps import AppConfig
from django.db.backends import postgresql

from tests.support.no_models import SITE, VIEWS
from tests.support.script import run_script


@pytest.mark.process
def test_project_without_models() -> None:
    """In a project whose models ask for no wrapper, transactions work from the first request on."""
    printed = run_script(
        'installed = ["pgbackend"]\n'
        + SITE
        + VIEWS
        + """
assert iscoroutinefunction(decorated)
asyncio.run(visit())
print(*[message.id for message in run_checks()])
"""
    )
    assert printed.splitlines() == ["200 42"] * 3 + ["pgbackend.W003"]


def test_has_no_models() -> None:
    """The application has the package's name as its label, and no models."""
    config = AppConfig.create("pgbackend")
    assert not hasattr(config.module, "models")
    assert (config.name, config.label) == ("pgbackend", "pgbackend")
    assert type(config).__module__ == "pgbackend.apps"


# What backends over this one look for beside `base`


@pytest.mark.parametrize(
    "name",
    [*("client", "compiler", "creation", "features", "introspection"), "operations", "schema"],
)
def test_modules_of_a_backend(name: str) -> None:
    """Each module of Django's backend is here under the same name, with the same public classes."""
    ours = importlib.import_module(f"pgbackend.{name}")
    djangos = importlib.import_module(f"{postgresql.__name__}.{name}")
    for each, value in vars(djangos).items():
        if getattr(value, "__module__", None) == djangos.__name__ and isinstance(value, type):
            if each == "InsertUnnest":
                # An inner part of Django's compiler.
                continue
            assert issubclass(getattr(ours, each), value), each


BACKEND_OVER_OURS = """
    import importlib
    from types import ModuleType

    def module(name, **names):
        made = sys.modules[name] = ModuleType(name)
        made.__dict__.update(names)

    original = "pgbackend"
    base = importlib.import_module(f"{original}.base")
    introspection = importlib.import_module(f"{original}.introspection")
    schema = importlib.import_module(f"{original}.schema")
    client = importlib.import_module(f"{original}.client")

    class Introspection(introspection.DatabaseIntrospection):
        def get_table_list(self, cursor):
            return [each for each in super().get_table_list(cursor) if each.name == "tests_author"]

    class Wrapper(base.DatabaseWrapper):
        introspection_class = Introspection
        SchemaEditorClass = type("Editor", (schema.DatabaseSchemaEditor,), {})
        client_class = type("Client", (client.DatabaseClient,), {})

    module("over", __path__=[])
    module("over.base", DatabaseWrapper=Wrapper)
    for each in conf["DATABASES"].values():
        each["ENGINE"] = "over"
    settings.configure(**conf)
    import django
    django.setup()
    from django.db import connection, connections, transaction
    from pgbackend import bridged
    from tests.models import Author

    @bridged
    async def main():
        async with transaction.atomic():
            print(connection.introspection.table_names(), await Author.objects.acount())

    asyncio.run(main())
    """


@pytest.mark.process
def test_backend_over_this_one() -> None:
    """A backend over this one finds the parts that it extends, and runs in the bridge."""
    assert run_script(BACKEND_OVER_OURS) == "['tests_author'] 0\n"
