"""Fingerprints: an unknown Django is left alone, place by place, and told about."""

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import django
import pytest
from django.core import checks
from django.dispatch import Signal

from pgbackend import fingerprints
from pgbackend.patches import where_to_run
from tests.support.script import run_script


def test_this_django_is_known() -> None:
    """Every place of the installed Django has a fingerprint that is known."""
    assert fingerprints.unpatched == []
    assert fingerprints.check_unpatched() == []
    assert not [each for each in checks.run_checks() if each.id == "pgbackend.W001"]


def test_every_place_has_a_fingerprint() -> None:
    """The table of fingerprints has exactly the places that are looked at, this Django's too."""
    values = {
        f"{name}:sync_to_async": fingerprints.fingerprint_of_calls(module)
        for name in where_to_run.RULES
        if django.VERSION >= (6, 0) or not name.startswith("django.tasks.")
        if hasattr(module := importlib.import_module(name), "sync_to_async")
    }
    others = {place for place in fingerprints.KNOWN if not place.endswith(":sync_to_async")}
    assert others == {
        *fingerprints.RELIED_ON,
        "django.core.handlers.base.BaseHandler.make_view_atomic",
        "django.db.models.query.BaseIterable.__aiter__",
        "django.db.models.query.BaseIterable._async_generator",
        "django.db.models.query.QuerySet._fetch_all",
        "django.db.models.query.QuerySet._prefetch_related_objects",
        "django.db.models.query.QuerySet.aiterator",
        "django.db.models.query.RawQuerySet._fetch_all",
        "django.db.models.query.RawQuerySet._prefetch_related_objects",
        "django.db.models.query.RawQuerySet.iterator",
        "django.db.transaction.Atomic.__enter__",
        "django.db.transaction.Atomic.__exit__",
        "django.utils.asyncio.async_unsafe",
    }
    for place in fingerprints.RELIED_ON:
        module = importlib.import_module(re.match(r"[a-z_.]+(?=\.)", place)[0])  # type: ignore[index]
        values[place] = fingerprints.fingerprint(fingerprints.find(place, module))
    for place, value in values.items():
        assert value in fingerprints.KNOWN[place], place


def test_modules_of_places() -> None:
    """A function's module is found if it is imported, and no other one instead."""
    found = fingerprints.module_of("asgiref.sync.SyncToAsync.thread_handler")
    assert found is importlib.import_module("asgiref.sync")
    assert fingerprints.module_of("asgiref.not_imported.Class.function") is None
    assert fingerprints.module_of("not_imported.function") is None


def test_fingerprint_ignores_indentation(tmp_path: Path) -> None:
    """A fingerprint changes with a function's code, not with its indentation or blank lines."""
    file = tmp_path / "indented.py"
    file.write_text(
        "def plain():\n    return 1\n\n"
        "class A:\n    def plain():\n\n        return 1\n\n"
        "class B:\n    def plain():\n        return 2\n"
    )
    spec = importlib.util.spec_from_file_location("indented", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    plain, same, other = module.plain, module.A.plain, module.B.plain
    assert fingerprints.fingerprint(plain) == fingerprints.fingerprint(same)
    assert fingerprints.fingerprint(plain) != fingerprints.fingerprint(other)


def alter_django(folder: Path, file: str, alter: Callable[[str], str]) -> None:
    """Make a package ``django`` in *folder* that is the installed one but for *file*."""
    source, target = Path(django.__file__).parent, folder / "django"
    target.mkdir()
    for part in Path(file).parts:
        for each in source.iterdir():
            if each.name != part:
                (target / each.name).symlink_to(each)
        source, target = source / part, target / part
        if source.is_dir():
            target.mkdir()
    target.write_text(alter(source.read_text()))


@pytest.mark.process
def test_altered_module(tmp_path: Path) -> None:
    """A module that is not Django's own keeps its threads, and the check names it."""
    alter_django(
        tmp_path, "db/models/base.py", lambda text: text + "\n# sync_to_async is used above\n"
    )
    printed = run_script(
        """
        settings.configure(**conf)
        import django
        django.setup()
        from django.core import checks
        from tests.models import Author
        for message in checks.run_checks():
            if message.id == "pgbackend.W001":
                print(message.msg)
        from asgiref.sync import sync_to_async
        from django.db import connection

        async def main():
            await Author.objects.acreate(name="native")
            native = threading.active_count()
            await Author(name="thread").asave()
            print(native, threading.active_count() > native)
            print(await Author.objects.acount())
            await sync_to_async(lambda: (connection.close(), connection.close_pool()))()

        asyncio.run(main())
        """,
        path=tmp_path,
    )
    assert printed.splitlines() == [
        "django.db.models.base:sync_to_async is not a version of Django's that pgbackend knows:"
        " its asynchronous methods keep using threads.",
        "1 True",
        "2",
    ]


@pytest.mark.process
def test_altered_handler(tmp_path: Path) -> None:
    """A function that is wrapped is so whatever it is, and the check names an unknown one."""
    alter_django(
        tmp_path,
        "core/handlers/asgi.py",
        lambda text: text.replace(
            "def read_body(self, receive):", "def read_body(self, receive, /):"
        ),
    )
    printed = run_script(
        """
        settings.configure(**conf)
        import django
        django.setup()
        from django.core import checks
        from django.core.handlers.asgi import ASGIHandler
        for message in checks.run_checks():
            if message.id == "pgbackend.W001":
                print(message.msg)
        print(hasattr(ASGIHandler.read_body, "__wrapped__"))
        """,
        path=tmp_path,
    )
    assert printed.splitlines() == [
        "django.core.handlers.asgi.ASGIHandler.read_body is not a version of Django's that"
        " pgbackend knows: requests are bridged all the same, and a part of them may not be.",
        "True",
    ]


def test_replaced_by_another_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another package has put in a function's place is not taken for a release's."""

    def _live_receivers(self: Any, sender: Any) -> Any:
        raise NotImplementedError

    monkeypatch.setattr(Signal, "_live_receivers", _live_receivers)
    assert fingerprints.check_unpatched() == []
    monkeypatch.delattr(Signal, "_live_receivers")
    (message,) = fingerprints.check_unpatched()
    assert message.msg == (
        "django.dispatch.dispatcher.Signal._live_receivers is not a version of Django's that"
        " pgbackend knows: it is not there; receivers of signals may run where they block the"
        " event loop."
    )


@pytest.mark.process
def test_altered_function(tmp_path: Path) -> None:
    """An `Atomic.__exit__` that is not Django's own is left alone, and the check says so."""
    alter_django(
        tmp_path,
        "db/transaction.py",
        lambda text: text.replace(
            "def __exit__(self, exc_type, exc_value, traceback):",
            "def __exit__(self, exc_type, exc_value, traceback):\n        # Altered.",
        ),
    )
    printed = run_script(
        """
        settings.configure(**conf)
        import django
        django.setup()
        from django.core import checks
        from django.db import connection, transaction
        connection.alias
        for message in checks.run_checks():
            if message.id == "pgbackend.W001":
                print(message.msg)
        print(hasattr(transaction.Atomic, "__aenter__"))
        """,
        path=tmp_path,
    )
    assert printed.splitlines() == [
        "django.db.transaction.Atomic.__exit__ is not a version of Django's that pgbackend"
        " knows: `async with transaction.atomic()` is not available.",
        "False",
    ]
