"""What was made from Django before this backend was loaded is reported."""

from pathlib import Path

import pytest

from tests.support.no_models import SITE, VIEWS
from tests.support.script import run_script


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

        print(asyncio.run(main()), run_checks(app_configs=[]))
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
