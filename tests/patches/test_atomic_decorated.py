"""`atomic` as a decorator, of whatever is asynchronous, also where it came before the backend."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import uvloop
from asgiref.sync import iscoroutinefunction
from django.db import connection, transaction
from django.utils.decorators import method_decorator
from django.views import View

from pgbackend import bridged
from tests.models import Author
from tests.support.script import run_script


async def fail_after_writing() -> None:
    """Write a row and fail: in a transaction, nothing of it stays."""
    await Author.objects.acreate(name="Ada")
    raise LookupError


def hides(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate as who knows nothing of coroutine functions does."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call


class AsynchronousObject:
    """An object with an asynchronous ``__call__``."""

    async def __call__(self) -> None:
        await fail_after_writing()


async def rows_of() -> AsyncIterator[int]:
    yield await Author.objects.acount()


# What asgiref and inspect do not know to be asynchronous.
HIDDEN = {
    "decorated": hides(fail_after_writing),
    "object": AsynchronousObject(),
    "lambda": lambda: fail_after_writing(),
    "partial of a hidden one": functools.partial(hides(fail_after_writing)),
}


# Decorators


@pytest.mark.parametrize("how", ["bare", "called", "durable", "twice"])
async def test_coroutine_function(how: str) -> None:
    """A decorated coroutine function's rows are gone if it fails, and it stays one."""
    decorate: dict[str, Callable[..., Any]] = {
        "bare": transaction.atomic,
        "called": transaction.atomic(),
        "durable": transaction.atomic(durable=True),
        "twice": lambda function: transaction.atomic(transaction.atomic(function)),
    }
    function = decorate[how](fail_after_writing)
    assert iscoroutinefunction(function)
    for call in (function, bridged(function)):
        with pytest.raises(LookupError):
            await call()
    assert await Author.objects.acount() == 0


async def test_partial() -> None:
    """A partial of a coroutine function is taken for one."""
    with pytest.raises(LookupError):
        await transaction.atomic(functools.partial(fail_after_writing))()
    assert await Author.objects.acount() == 0


@pytest.mark.parametrize("hidden", HIDDEN.values(), ids=HIDDEN)
async def test_hidden_coroutine_function(hidden: Callable[..., Any]) -> None:
    """What returns a coroutine unexpectedly is refused, with the cure, before anything runs."""
    function = transaction.atomic(hidden)

    @bridged
    async def work() -> None:
        await function()

    with pytest.raises(TypeError, match=r"atomic\(\) cannot see that .* is asynchronous.*`async"):
        await work()
    assert await Author.objects.acount() == 0
    # The block was left, and what comes next is in none.
    assert await Author.objects.acreate(name="Ada")
    assert await Author.objects.acount() == 1


async def test_hidden_asynchronous_generator() -> None:
    """What returns an asynchronous generator unexpectedly is refused, too."""
    with pytest.raises(TypeError, match="an asynchronous generator"):
        await bridged(transaction.atomic(lambda: rows_of()))()


async def test_dispatch_of_an_asynchronous_view() -> None:
    """atomic around the dispatch() of asynchronous views is refused; around get() it holds."""

    class Both(View):
        async def get(self, request: object) -> None:
            await fail_after_writing()

    dispatching = method_decorator(transaction.atomic, name="dispatch")(type("A", (Both,), {}))
    getting = method_decorator(transaction.atomic, name="get")(type("B", (Both,), {}))

    class Request:
        method = "GET"

    for view, error in ((dispatching, TypeError), (getting, LookupError)):
        with pytest.raises(error):
            await bridged(view.as_view())(Request())
    assert await Author.objects.acount() == 0


async def test_synchronous_function() -> None:
    """A synchronous function's value, arguments, errors and wrapped function are its own."""

    def add(name: str, *, fail: bool = False) -> str:
        assert connection.in_atomic_block
        Author.objects.create(name=name)
        if fail:
            raise LookupError
        return name

    function = transaction.atomic(add)
    assert await bridged(function)("Ada") == "Ada"
    with pytest.raises(LookupError):
        await bridged(function)("Eve", fail=True)
    assert [author.name async for author in Author.objects.all()] == ["Ada"]
    assert function.__name__ == "add"


@pytest.mark.parametrize("options", [{"bridge": False}, {}])
def test_database_of_others(options: dict[str, Any], add_alias: Callable[..., str]) -> None:
    """Where Django's own way is taken, a function may return a coroutine, as it always could."""
    alias = add_alias(options, **({} if options else {"ENGINE": "django.db.backends.postgresql"}))
    coroutine = transaction.atomic(using=alias)(lambda: fail_after_writing())()
    coroutine.close()
    coroutine = Retrying(alias, True, False)(fail_after_writing)()
    coroutine.close()


class Retrying(transaction.Atomic):
    """Django's class with a decorator of its own, as packages have that retry transactions."""

    def __call__(self, func: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(func)
        def inner(*args: Any, **kwargs: Any) -> Any:
            with self._recreate_cm():
                return func(*args, **kwargs)

        return inner


async def test_decorator_of_a_subclass() -> None:
    """A subclass's own decorator, which leaves the block too early, is refused when called."""
    function = Retrying("default", True, False)(fail_after_writing)

    @bridged
    async def work() -> None:
        await function()

    with pytest.raises(TypeError, match="is asynchronous"):
        await work()
    assert await Author.objects.acount() == 0


async def test_asynchronous_decorator_of_a_subclass() -> None:
    """A subclass's decorator that awaits inside the block is not refused."""

    class Awaiting(transaction.Atomic):
        def __call__(self, func: Callable[..., Any]) -> Callable[..., Any]:
            async def inner() -> Any:
                with self._recreate_cm():
                    return await func()

            return inner

    @bridged
    async def work() -> None:
        await Awaiting("default", True, False)(fail_after_writing)()

    with pytest.raises(LookupError):
        await work()
    assert await Author.objects.acount() == 0


def test_on_both_loops() -> None:
    """Decorated coroutine functions are rolled back side by side, whatever the loop."""
    function = transaction.atomic(fail_after_writing)

    async def work() -> None:
        done = await asyncio.gather(*(function() for _ in range(20)), return_exceptions=True)
        assert [type(each) for each in done] == [LookupError] * 20
        assert await Author.objects.acount() == 0

    for factory in (asyncio.new_event_loop, uvloop.new_event_loop):
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(work())


# Decorated before the backend was loaded

# A module with what a project's __init__.py may import: nothing in it needs the applications.
EARLY = """
import contextlib
import functools
from asgiref.sync import async_to_sync, iscoroutinefunction, sync_to_async
from django.db import transaction
from django.db.transaction import Atomic, atomic
assert "pgbackend" not in sys.modules


async def fail_after_writing(name="Ada"):
    from tests.models import Author
    await Author.objects.acreate(name=name)
    raise LookupError(name)


def hidden():
    return fail_after_writing()


def write():
    from tests.models import Author
    Author.objects.create(name="synchronous")
    raise LookupError


class Service:
    @atomic
    async def method(self):
        await fail_after_writing()

    @staticmethod
    @transaction.atomic(durable=True)
    async def static():
        await fail_after_writing()


class Plain(contextlib.ContextDecorator):
    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        return None


asynchronous = {
    "bare": transaction.atomic(fail_after_writing),
    "called": atomic(using="default", savepoint=False)(fail_after_writing),
    "instance": Atomic("default", True, False)(fail_after_writing),
    "twice": atomic(atomic(fail_after_writing)),
    "partial": atomic(functools.partial(fail_after_writing, name="Eve")),
    "method": Service().method,
    "static": Service.static,
}
block = atomic()
synchronous = atomic(write)
hiding = atomic(hidden)
plain = Plain()(functools.partial(fail_after_writing, name="Eve"))
in_thread = sync_to_async(synchronous)
in_place = async_to_sync(fail_after_writing)
"""

AFTERWARDS = """
settings.configure(**conf)
import django
django.setup()
from django.core import checks
from django.db import connection, connections
from pgbackend import bridged
from tests.models import Author


async def outcome(function):
    try:
        await function()
    except Exception as error:
        return type(error).__name__
    finally:
        assert not connection.in_atomic_block


@bridged
async def in_the_bridge():
    seen = {name: await outcome(each) for name, each in asynchronous.items()}
    assert set(seen.values()) == {"LookupError"}, seen
    assert all(map(iscoroutinefunction, asynchronous.values()))
    assert await outcome(bridged(synchronous)) == "LookupError"
    assert await outcome(hiding) == "TypeError"
    async with block:
        await Author.objects.acreate(name="block")
        transaction.set_rollback(True)
    assert await outcome(in_thread) == "LookupError"
    assert await Author.objects.acount() == 0
    assert await outcome(bridged(in_place)) == "LookupError"
    assert await outcome(plain) == "LookupError"
    assert await Author.objects.acount() == 2
    await Author.objects.all().adelete()


async def outside():
    seen = {name: await outcome(each) for name, each in asynchronous.items()}
    assert set(seen.values()) == {"LookupError"}, seen
    assert await outcome(hiding) == "SynchronousOnlyOperation"
    assert await Author.objects.acount() == 0


for new_event_loop in loops:
    for main in (in_the_bridge, outside):
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(main())
try:
    synchronous()
except LookupError:
    assert Author.objects.count() == 0
for message in checks.run_checks(app_configs=[]):
    print(message.id, message.msg)
connections.close_all()
for each in connections.all():
    each.close_pool()
"""

LOOPS = """
import uvloop
loops = [asyncio.new_event_loop, uvloop.new_event_loop]
"""


@pytest.mark.process
def test_decorated_before_loading() -> None:
    """What atomic has decorated before the backend is loaded is as if decorated afterwards.

    The check names each of the asynchronous functions.
    """
    printed = run_script(LOOPS + EARLY + AFTERWARDS).splitlines()
    assert len(printed) == 8
    assert {line.split(" ", 1)[0] for line in printed} == {"pgbackend.W003"}
    assert any("coroutine function __main__.Service.method before" in line for line in printed)
    assert not any("write" in line or "hidden" in line for line in printed)


@pytest.mark.process
def test_decorated_after_loading() -> None:
    """With the application "pgbackend" loaded before them, the same functions give no warning."""
    first = "settings.configure(**conf)\nimport pgbackend.apps\n"
    late = EARLY.replace("assert", "#", 1) + AFTERWARDS.replace("settings.configure", "#", 1)
    assert run_script(LOOPS + first + late) == ""


@pytest.mark.process
def test_generator_decorated_before_loading() -> None:
    """An asynchronous generator function that atomic decorated too early is refused when called."""
    printed = run_script(
        """
        settings.configure(**conf)
        from django.db import transaction

        @transaction.atomic
        async def generate():
            yield

        import pgbackend.base
        try:
            generate()
        except TypeError as error:
            print(error)
        """
    )
    assert "an asynchronous generator" in printed


def test_contextlibs_decorators_stay() -> None:
    """What others decorate by contextlib's ContextDecorator is left as it is."""

    class Plain(contextlib.ContextDecorator):
        def __enter__(self) -> None:
            entered.append(1)

        def __exit__(self, *exc_info: object) -> None:
            entered.append(-1)

    async def function() -> list[int]:
        return list(entered)

    entered: list[int] = []
    assert asyncio.run(Plain()(function)()) == [1, -1]
