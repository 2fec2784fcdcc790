"""The application "pgbackend" in INSTALLED_APPS, and what happens without it."""

import importlib
from pathlib import Path

import pytest
from django.apps import AppConfig
from django.db.backends import postgresql

from tests.support.script import run_script

# A site without models, or with models that all name their tables: nothing in Django asks for a
# database wrapper before the first request. Its module stands for views.py, and what comes before
# django.setup() for the project's __init__.py or asgi.py.
SITE = """
from types import ModuleType
conf |= {
    "ALLOWED_HOSTS": ["testserver"],
    "DATABASES": {"default": conf["DATABASES"]["default"]},
    "DATABASE_ROUTERS": [],
    "INSTALLED_APPS": installed,
    "MIDDLEWARE": ["django.middleware.common.CommonMiddleware"],
    "ROOT_URLCONF": "__main__",
}
settings.configure(**conf)
from django.db import transaction
from asgiref.sync import iscoroutinefunction


@transaction.atomic
async def decorated(request):
    return await answer()


async def answer():
    from django.db import connection
    from django.http import HttpResponse
    assert connection.in_atomic_block
    with connection.cursor() as cursor:
        cursor.execute("SELECT 42")
        return HttpResponse(cursor.fetchone()[0])


import django
django.setup()
assert ("pgbackend.base" in sys.modules) == ("pgbackend" in installed)

from django.core.asgi import get_asgi_application
from django.core.checks import run_checks
from django.db import connection, connections, models
from django.urls import path
application = get_asgi_application()
"""

VIEWS = """
class Named(models.Model):
    class Meta:
        app_label, db_table = "named", "named"


async def block(request):
    async with transaction.atomic():
        return await answer()


async def visit():
    from tests.support.client import Client
    client = Client(application)
    for address in ("/block", "/decorated", "/block"):
        got = await client.get(address)
        print(got.status, got.text)


urlpatterns = [path("block", block), path("decorated", decorated)]
"""


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


@pytest.mark.process
def test_application_made_too_early() -> None:
    """Without it, an ASGI application may be made before: that is logged and checked, and works."""
    printed = run_script(
        "installed = []\nimport logging\nlogging.basicConfig(stream=sys.stdout)\n"
        + SITE
        + "import pgbackend.base\n"
        + VIEWS
        + "asyncio.run(visit())\nprint(*[message.msg for message in run_checks()], sep=chr(10))\n"
    ).splitlines()
    made = (
        "The ASGI application django.core.handlers.asgi.ASGIHandler was made before pgbackend was"
        " loaded: its synchronous middleware keeps its threads."
    )
    assert printed[0].startswith(f"WARNING:pgbackend:{made} Put")
    assert printed[1:4] == ["200 42"] * 3
    assert made in printed[4:]


@pytest.mark.process
def test_before_settings() -> None:
    """The backend can be imported before settings are there, as the project's __init__.py does."""
    printed = run_script(
        """
        import pgbackend.base
        assert not settings.configured
        settings.configure(**conf)
        import django
        django.setup()
        from django.core.checks import run_checks
        from django.db import transaction
        from tests.models import Author

        @transaction.atomic
        async def write():
            await Author.objects.acreate(name="Ada")
            raise LookupError

        async def main():
            try:
                await write()
            except LookupError:
                return await Author.objects.acount()

        print(asyncio.run(main()), run_checks())
        """
    )
    assert printed == "0 []\n"


@pytest.mark.process
def test_check(tmp_path: Path) -> None:
    """`manage.py check` names what came too early, with the cure; with the application, nothing."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").write_text(
        "from django.db import transaction\n\n\n@transaction.atomic\nasync def sell():\n    pass\n"
    )
    (tmp_path / "shop" / "models.py").write_text(
        "from django.db import models\n\n\nclass Dish(models.Model):\n    pass\n"
    )
    check = """
        conf["DATABASES"].pop("other")
        conf["DATABASE_ROUTERS"] = []
        conf["INSTALLED_APPS"] = {installed}
        settings.configure(**conf)
        import django
        django.setup()
        from django.core.management import call_command
        call_command("check", stdout=sys.stdout, stderr=sys.stdout)
        call_command("makemigrations", "pgbackend", "--check", stdout=sys.stdout) if {known} else 0
    """
    printed = run_script(check.format(installed=["shop"], known=False), path=tmp_path)
    assert "coroutine function shop.sell before pgbackend was loaded" in printed
    assert 'HINT: Put "pgbackend" first in INSTALLED_APPS' in printed
    printed = run_script(check.format(installed=["pgbackend", "shop"], known=True), path=tmp_path)
    assert "no issues" in printed
    assert "No changes detected in app 'pgbackend'" in printed


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
