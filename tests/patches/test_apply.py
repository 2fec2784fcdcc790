"""The changes at run time: applied once, also to what is imported later."""

import importlib
import threading

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import connection, transaction
from django.db.backends.postgresql import base as postgresql
from django.db.models.query import BaseIterable
from django.test import SimpleTestCase

from pgbackend import bridged
from pgbackend.patches import apply
from tests.models import Author
from tests.support.script import run_script

# Applying


def test_apply_twice() -> None:
    """Applying the patches again changes nothing."""
    places = [
        (transaction.Atomic, "__enter__"),
        (transaction.Atomic, "__exit__"),
        (postgresql.DatabaseWrapper, "get_new_connection"),
        (type(sync_to_async(print)), "__call__"),
        (async_to_sync, "__call__"),
        (BaseIterable, "_async_generator"),
        (importlib.import_module("django.db.models.query"), "sync_to_async"),
    ]
    before = [getattr(*place) for place in places]
    apply.apply()
    assert [getattr(*place) for place in places] == before


@pytest.mark.process
def test_module_imported_later() -> None:
    """A module that is imported after the backend is patched when it is imported."""
    printed = run_script(
        """
        settings.configure(**conf)
        import asgiref.sync
        import django
        django.setup = None
        from django.apps import apps
        import pgbackend.base
        from pgbackend import fingerprints
        from pgbackend.patches import where_to_run
        late = [name for name in where_to_run.RULES if name not in sys.modules]
        assert "django.contrib.contenttypes.fields" in late, late
        apps.populate(settings.INSTALLED_APPS)
        from importlib import import_module
        for name in late:
            try:
                module = import_module(name)
            except ModuleNotFoundError:
                assert name.startswith("django.tasks."), name
                continue
            assert getattr(module, "sync_to_async", None) is not asgiref.sync.sync_to_async, name
        assert fingerprints.unpatched == []
        print("patched")
        """
    )
    assert printed == "patched\n"


# async_to_sync in the bridge


async def test_applications_sync_to_async_keeps_its_thread() -> None:
    """The application's own sync_to_async runs in a thread, as ever, from the bridge too."""
    thread = await sync_to_async(threading.current_thread)()
    assert thread is not threading.main_thread()
    async with transaction.atomic():
        thread = await sync_to_async(threading.current_thread)()
        assert thread is not threading.main_thread()


# Guards


async def test_simple_test_case_forbids_queries() -> None:
    """SimpleTestCase forbids connections and queries in the bridge as it does elsewhere."""

    class Case(SimpleTestCase):
        databases: set[str] = set()  # noqa: RUF012  # as Django's own

    Case.setUpClass()
    try:
        with pytest.raises(AssertionError, match="'default' are not allowed"):
            await Author.objects.acount()
        with pytest.raises(AssertionError, match="'default' are not allowed"):
            await bridged(lambda: connection.cursor())()
        with pytest.raises(AssertionError, match="'default' are not allowed"):
            await bridged(lambda: connection.ensure_connection())()
    finally:
        Case.tearDownClass()
        Case.doClassCleanups()
    assert await Author.objects.acount() == 0
