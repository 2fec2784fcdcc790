"""Routing: which of Django's asynchronous calls run bridged, and which in a thread."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import django
import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth import aauthenticate
from django.contrib.auth.hashers import MD5PasswordHasher
from django.contrib.auth.models import User
from django.core.cache.backends.locmem import LocMemCache
from django.db import transaction
from django.db.models import Func, IntegerField
from django.dispatch import Signal
from django.test.utils import override_settings

from pgbackend import bridged
from tests.models import Author, Elsewhere
from tests.support.counts import count
from tests.support.script import run_script
from tests.support.server import Server
from tests.support.sessions import apid, pid

# On behalf of synchronous code


def test_async_to_sync_sees_the_transaction(server: Server) -> None:
    """a-methods under async_to_sync see the caller's uncommitted rows, on its connection."""
    with transaction.atomic(using="other"):
        Elsewhere.objects.create(name="x")
        assert async_to_sync(count)() == 1

        async def change() -> None:
            await Elsewhere.objects.aupdate(name="y")
            async for each in Elsewhere.objects.all():
                await each.arefresh_from_db()
                assert each.name == "y"

        async_to_sync(change)()
        assert server.backends() == 1
    assert Elsewhere.objects.get().name == "y"


def test_async_to_sync_without_a_transaction_opens_no_pool() -> None:
    """a-methods under async_to_sync use the calling thread's connection."""
    Elsewhere.objects.create(name="x")
    backend = Func(function="pg_backend_pid", output_field=IntegerField())

    async def work() -> int:
        row = await Elsewhere.objects.annotate(backend=backend).aget()
        return int(row.backend)

    assert async_to_sync(work)() == pid("other")


def test_async_atomic_under_async_to_sync(server: Server) -> None:
    """`async with atomic()` under async_to_sync is the calling thread's transaction."""

    async def work() -> None:
        async with transaction.atomic(using="other"):
            await Elsewhere.objects.acreate(name="x")
            raise KeyError("stop")

    with transaction.atomic(using="other"):
        with pytest.raises(KeyError, match="stop"):
            async_to_sync(work)()
        assert Elsewhere.objects.count() == 0
        assert server.backends() == 1


@pytest.mark.process
def test_bridged_function_with_the_bridge_switched_off() -> None:
    """With "bridge" False for every database, a bridged function runs in a thread."""
    run_script(
        """
        import asyncio, threading
        from django.conf import settings
        from tests import settings as ours

        for database in ours.DATABASES.values():
            database["OPTIONS"]["bridge"] = False
        import django
        django.setup()
        from django.db import connection
        from pgbackend import bridged
        from tests.models import Author

        def work():
            count = Author.objects.count()
            connection.close()
            return count, threading.get_ident()

        count, thread = asyncio.run(bridged(work)())
        assert count == 0
        assert thread != threading.get_ident()
        """
    )


# What keeps its thread


class RecordingCache(LocMemCache):
    """Knows the threads it was read in."""

    def __init__(self) -> None:
        super().__init__("recording", {})
        self.threads: list[threading.Thread] = []

    def get(self, *args: Any, **kwargs: Any) -> Any:
        self.threads.append(threading.current_thread())
        return super().get(*args, **kwargs)


async def test_other_caches_keep_their_thread() -> None:
    """A cache that is not in the database is used in a thread, as in stock Django."""
    cache = RecordingCache()
    await cache.aset("a", 1)
    assert await cache.aget("a") == 1
    (thread,) = cache.threads
    assert thread is not threading.main_thread()


class RecordingHasher(MD5PasswordHasher):
    """Knows the threads it verified a password in."""

    threads: list[threading.Thread] = []  # noqa: RUF012  # the class is the record

    def verify(self, password: str, encoded: str) -> bool:
        self.threads.append(threading.current_thread())
        return bool(super().verify(password, encoded))


@pytest.mark.skipif(django.VERSION < (6, 0), reason="hashes on the loop before Django 6.0")
async def test_password_hashing_keeps_its_thread() -> None:
    """aauthenticate() queries on the loop and hashes in a thread."""
    name = f"{__name__}.{RecordingHasher.__qualname__}"
    with override_settings(PASSWORD_HASHERS=[name]):
        user = await User.objects.acreate_user("ada", password="secret")
        RecordingHasher.threads.clear()
        assert await aauthenticate(username="ada", password="secret") == user
        assert await aauthenticate(username="ada", password="wrong") is None
        assert await user.acheck_password("secret")
    assert len(RecordingHasher.threads) == 3
    assert threading.main_thread() not in RecordingHasher.threads


@pytest.mark.process
def test_alias_of_another_engine(tmp_path: Path) -> None:
    """An SQLite alias beside keeps Django's threads; this backend's stays native."""
    printed = run_script(
        f"""
        conf["DATABASES"]["lite"] = {{
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": {str(tmp_path / "lite.sqlite3")!r},
        }}
        settings.configure(**conf)
        import django
        django.setup()
        from asgiref.sync import sync_to_async
        from django.db import connections, transaction
        from django.apps import apps
        from tests.models import Author

        with connections["lite"].schema_editor() as editor:
            for model in apps.get_models():
                editor.create_model(model)
        connections.close_all()

        async def main():
            await Author.objects.acreate(name="native")
            assert await Author.objects.acount() == 1
            assert threading.active_count() == 1, threading.enumerate()
            lite = Author.objects.using("lite")
            author = await lite.acreate(name="lite")
            assert threading.active_count() == 2, threading.enumerate()
            author.name = "Lite"
            await author.asave()
            await Author(name="b").asave(using="lite")
            await author.arefresh_from_db()
            assert [each.name async for each in lite.order_by("pk")] == ["Lite", "b"]
            assert [each.name async for each in lite.order_by("pk").aiterator()] == ["Lite", "b"]
            assert await author.adelete() == (1, {{"tests.Author": 1}})
            assert await lite.acount() == 1
            try:
                async with transaction.atomic(using="lite"):
                    await lite.acreate(name="lost")
                    raise KeyError
            except KeyError:
                pass
            assert await lite.acount() == 1
            assert [each.name async for each in Author.objects.all()] == ["native"]
            await sync_to_async(connections.close_all)()

        asyncio.run(main())
        print("done")
        """
    )
    assert printed == "done\n"


# Signals


@pytest.fixture
def signal() -> Iterator[Signal]:
    signal = Signal()
    yield signal
    signal.receivers.clear()


async def test_synchronous_receivers_of_asend(signal: Signal) -> None:
    """Synchronous receivers of asend() see the sender's uncommitted rows, on its connection."""

    def receive(**kwargs: Any) -> tuple[int, int]:
        return Author.objects.count(), pid()

    def second(**kwargs: Any) -> tuple[int, int]:
        return receive()

    signal.connect(receive)
    signal.connect(second)
    async with transaction.atomic():
        await Author.objects.acreate(name="Ada")
        expected = (1, await apid())
        assert [result for _, result in await signal.asend(None)] == [expected] * 2
        assert [result for _, result in await signal.asend_robust(None)] == [expected] * 2


async def test_asynchronous_receivers_of_asend(signal: Signal) -> None:
    """Asynchronous receivers of asend() take part in the sender's transaction."""

    async def receive(**kwargs: Any) -> tuple[int, int]:
        return await Author.objects.acount(), await apid()

    async def second(**kwargs: Any) -> tuple[int, int]:
        async with transaction.atomic():
            return await receive()

    signal.connect(receive)
    signal.connect(second)
    async with transaction.atomic():
        await Author.objects.acreate(name="Ada")
        expected = (1, await apid())
        assert [result for _, result in await signal.asend(None)] == [expected] * 2


async def test_send_in_the_bridge_runs_asynchronous_receivers(signal: Signal) -> None:
    """send() in the bridge waits for asynchronous receivers, in the sender's transaction."""

    async def receive(**kwargs: Any) -> int:
        return await Author.objects.acount()

    signal.connect(receive)

    @bridged
    def work() -> list[int]:
        with transaction.atomic():
            Author.objects.create(name="Ada")
            return [result for _, result in signal.send(None)]

    assert await work() == [1]
