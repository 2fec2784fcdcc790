"""Methods under Django's async_unsafe, whoever marked them, in the bridge and outside."""

import asyncio
import functools
from collections.abc import Callable
from typing import Any

import pytest
import uvloop
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connection, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.sqlite3.base import DatabaseWrapper as SQLiteWrapper
from django.utils.asyncio import async_unsafe

from pgbackend import base, bridged
from tests.models import Author

GUARDED = (
    *("connect", "ensure_connection", "cursor", "chunked_cursor", "create_cursor", "close"),
    *("commit", "rollback", "savepoint", "savepoint_rollback", "savepoint_commit"),
)


def with_marked(cls: str, *bases: type) -> Any:
    """Return a class on *bases* whose methods are under the guard, as in django-tenants."""

    def marked(name: str) -> Callable[..., Any]:
        @async_unsafe
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            self.called.append(name)
            return getattr(super(made, self), name)(*args, **kwargs)

        return method

    made: Any = type(cls, bases, {**{name: marked(name) for name in GUARDED}, "called": []})
    return made


Subclass: Any = with_marked("Subclass", base.DatabaseWrapper)
Twice: Any = with_marked("Twice", Subclass)
Mixin: Any = with_marked("Mixin", object)
Mixed: Any = type("Mixed", (Mixin, base.DatabaseWrapper), {})
MixedBelow: Any = type("MixedBelow", (type("Other", (Mixin,), {}), Subclass), {})

CLASSES = [Subclass, Twice, Mixed, MixedBelow]


@pytest.fixture(params=CLASSES, ids=[each.__name__ for each in CLASSES])
def wrapper(request: pytest.FixtureRequest, add_alias: Callable[..., str]) -> Any:
    """A wrapper of a subclass, under an alias of its own."""
    alias = add_alias()
    made = connections[alias] = request.param(connections.settings[alias], alias)
    made.called.clear()
    return made


def write(wrapper: Any, *, fail: bool) -> None:
    """Write two rows, one in a nested block that fails, and fail if asked to."""
    with transaction.atomic(using=wrapper.alias):
        authors = Author.objects.using(wrapper.alias)
        authors.create(name="outer")
        with pytest.raises(KeyError), transaction.atomic(using=wrapper.alias):
            authors.create(name="inner")
            raise KeyError
        with transaction.atomic(using=wrapper.alias):
            assert len(list(authors.iterator(chunk_size=1))) == 1
        if fail:
            raise LookupError("the application's own")


def test_subclass_in_the_bridge(wrapper: Any) -> None:
    """Whatever a subclass or a mixin has marked runs in the bridge, as ours does, on both loops.

    Blocks that fail are rolled back, the error is the application's, and what comes next is kept.
    """

    async def work(wrapper: Any) -> None:
        connections[wrapper.alias] = wrapper
        with pytest.raises(LookupError, match="the application's own"):
            await bridged(write)(wrapper, fail=True)
        assert not wrapper.in_atomic_block
        assert await Author.objects.using(wrapper.alias).acount() == 0
        await bridged(write)(wrapper, fail=False)
        assert [each.name async for each in Author.objects.using(wrapper.alias)] == ["outer"]
        await Author.objects.using(wrapper.alias).all().adelete()
        async with transaction.atomic(using=wrapper.alias):
            await Author.objects.using(wrapper.alias).acreate(name="outer")
        assert await Author.objects.acount() == 1
        await Author.objects.all().adelete()

    for factory in (asyncio.new_event_loop, uvloop.new_event_loop):
        made = type(wrapper)(wrapper.settings_dict, wrapper.alias)
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(work(made))
    expected = {"commit", "rollback", "savepoint", "savepoint_rollback", "savepoint_commit"}
    assert expected <= set(made.called)


def test_subclass_in_a_thread(wrapper: Any) -> None:
    """Without a loop the subclass's methods run as ever."""
    with pytest.raises(LookupError):
        write(wrapper, fail=True)
    write(wrapper, fail=False)
    assert Author.objects.using(wrapper.alias).count() == 1


async def test_subclass_outside_the_bridge(wrapper: Any) -> None:
    """On a loop, not bridged, they are refused, with the way out; unless the user allows it."""
    for name in ("commit", "rollback", "cursor", "ensure_connection"):
        with pytest.raises(SynchronousOnlyOperation, match=r"pgbackend\.bridged"):
            getattr(wrapper, name)()


async def test_djangos_own_outside_the_bridge() -> None:
    """Django's own guarded methods are refused with the way out, too."""
    for name in ("commit", "rollback", "cursor", "ensure_connection", "close"):
        with pytest.raises(SynchronousOnlyOperation, match=r"pgbackend\.bridged"):
            getattr(connection, name)()


async def test_allowed_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """DJANGO_ALLOW_ASYNC_UNSAFE allows on a loop what it allows with Django's own backend."""
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")

    @async_unsafe
    def function() -> int:
        return 1

    assert function() == 1
    connection.ensure_connection()
    connection.close()


async def test_other_engines_stay_guarded() -> None:
    """A wrapper of another engine, and a function of no wrapper's, is refused in the bridge."""

    @async_unsafe("it blocks")
    def function(*args: Any) -> None:
        raise AssertionError

    other = SQLiteWrapper({**connection.settings_dict, "NAME": ":memory:", "OPTIONS": {}}, "lite")
    for call in (other.cursor, other.ensure_connection, function, functools.partial(function, 1)):
        with pytest.raises(SynchronousOnlyOperation):
            await bridged(call)()
    with pytest.raises(SynchronousOnlyOperation, match="it blocks"):
        function()


async def test_alias_that_is_switched_off(add_alias: Callable[..., str]) -> None:
    """With OPTIONS["bridge"] = False the guard is Django's own, in a subclass as well."""
    alias = add_alias({"bridge": False})
    for cls in (base.DatabaseWrapper, Subclass):
        made = cls(connections.settings[alias], alias)
        with pytest.raises(SynchronousOnlyOperation, match="You cannot call this"):
            await bridged(made.cursor)()


async def test_guarded_method_that_was_taken_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """An instrumentation may call the guarded method that it took from Django's class."""
    seen = []
    guarded = async_unsafe(vars(BaseDatabaseWrapper)["commit"])

    def commit(self: Any) -> None:
        seen.append("commit")
        guarded(self)

    monkeypatch.setattr(BaseDatabaseWrapper, "commit", commit)
    async with transaction.atomic():
        await Author.objects.acreate(name="Ada")
    assert seen == ["commit"]
    assert await Author.objects.acount() == 1


async def test_error_of_a_guarded_method() -> None:
    """An error in a method, a RuntimeError too, leaves its guard as it is."""

    class Failing(base.DatabaseWrapper):
        @async_unsafe
        def rollback(self) -> None:
            raise RuntimeError("mine")

    made = Failing(connection.settings_dict, "default")
    with pytest.raises(RuntimeError, match="mine"):
        await bridged(made.rollback)()
