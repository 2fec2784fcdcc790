"""Hooks of on_commit: coroutine functions among them are awaited."""

import asyncio
import contextvars
import functools
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest
from asgiref.sync import async_to_sync, markcoroutinefunction, sync_to_async
from django.db import IntegrityError, connection, transaction
from django.db.transaction import TransactionManagementError
from django.test import TestCase

from pgbackend import bridged
from pgbackend.transaction import aon_commit, aset_autocommit, detached
from tests.models import Author
from tests.support.limits import PATIENCE
from tests.support.script import run_script
from tests.support.server import Server
from tests.support.sessions import committed, running, until
from tests.support.wrapper import on_loan, small_pool


class Failed(Exception):
    pass


# What is awaited


class Hook:
    """An object whose call is asynchronous."""

    def __init__(self, ran: list[Any], name: Any) -> None:
        self.ran = ran
        self.name = name

    async def __call__(self) -> None:
        await asyncio.sleep(0)
        self.ran.append((self.name, await Author.objects.acount()))

    async def method(self) -> None:
        await self()


def coroutine_function(ran: list[Any], name: Any) -> Callable[[], Any]:
    async def hook() -> None:
        await Hook(ran, name)()

    return hook


def partial(ran: list[Any], name: Any) -> Callable[[], Any]:
    async def hook(name: Any) -> None:
        await Hook(ran, name)()

    return functools.partial(hook, name)


def a_lambda(ran: list[Any], name: Any) -> Callable[[], Any]:
    return lambda: Hook(ran, name)()


def a_method(ran: list[Any], name: Any) -> Callable[[], Any]:
    return Hook(ran, name).method


def partial_of_an_object(ran: list[Any], name: Any) -> Callable[[], Any]:
    return functools.partial(Hook(ran, name))


def decorated(ran: list[Any], name: Any) -> Callable[[], Any]:
    hook = coroutine_function(ran, name)

    @functools.wraps(hook)
    def wrapper() -> Any:
        return hook()

    return wrapper


def marked(ran: list[Any], name: Any) -> Callable[[], Any]:
    hook = coroutine_function(ran, name)
    return markcoroutinefunction(lambda: hook())


def a_bridged_function(ran: list[Any], name: Any) -> Callable[[], Any]:
    return bridged(lambda: ran.append((name, Author.objects.count())))


def in_a_thread(ran: list[Any], name: Any) -> Callable[[], Any]:
    def hook() -> None:
        ran.append((name, Author.objects.count()))
        connection.close()

    return sync_to_async(hook)


def synchronous(ran: list[Any], name: Any) -> Callable[[], Any]:
    return lambda: ran.append((name, Author.objects.count()))


KINDS: list[Callable[[list[Any], Any], Callable[[], Any]]] = [
    coroutine_function,
    partial,
    a_lambda,
    Hook,
    a_method,
    partial_of_an_object,
    decorated,
    marked,
    a_bridged_function,
    in_a_thread,
    synchronous,
]
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


@kinds
@pytest.mark.parametrize("robust", [False, True])
async def test_hook_is_awaited(kind: Callable[..., Any], robust: bool) -> None:
    """Whatever returns a coroutine is awaited after the commit, on any way to register it."""
    ran: list[Any] = []
    async with transaction.atomic():
        await Author.objects.acreate(name="Ada")
        transaction.on_commit(kind(ran, "plain"), robust=robust)
        await aon_commit(kind(ran, "awaited"), robust=robust)
        await bridged(transaction.on_commit)(kind(ran, "bridged"), robust=robust)
        assert ran == []
    assert ran == [("plain", 1), ("awaited", 1), ("bridged", 1)]


@kinds
async def test_hook_outside_a_transaction(kind: Callable[..., Any]) -> None:
    """Outside a transaction it is called, and awaited, at once."""
    ran: list[Any] = []
    await aon_commit(kind(ran, "awaited"))
    assert ran == [("awaited", 0)]
    await bridged(transaction.on_commit)(kind(ran, "bridged"))
    assert ran == [("awaited", 0), ("bridged", 0)]


async def test_hooks_run_in_order(server: Server) -> None:
    """Hooks run one after another in the order in which they were registered, of all kinds."""
    ran: list[Any] = []
    async with transaction.atomic():
        for number, kind in enumerate(KINDS * 2):
            transaction.on_commit(kind(ran, number))
            async with transaction.atomic():
                await aon_commit(KINDS[-1 - number % len(KINDS)](ran, number + 0.5))
    assert [name for name, _ in ran] == [number / 2 for number in range(4 * len(KINDS))]


async def test_what_is_not_awaited() -> None:
    """A hook may start a task and return it: the task is not waited for."""
    release = asyncio.Event()
    tasks: list[asyncio.Task[Any]] = []

    def start() -> asyncio.Task[Any]:
        tasks.append(asyncio.create_task(release.wait()))  # type: ignore[arg-type]
        return tasks[0]

    async with asyncio.timeout(PATIENCE):
        async with transaction.atomic():
            transaction.on_commit(start)
    assert not tasks[0].done()
    release.set()
    await tasks[0]


async def test_hook_has_to_be_callable() -> None:
    """What cannot be called is refused when it is registered, a coroutine object for instance."""

    async def hook() -> None:
        pass

    async with transaction.atomic():
        for wrong in (None, "hook"):
            with pytest.raises(TypeError, match="callable"):
                transaction.on_commit(wrong)
        coroutine = hook()
        with pytest.raises(TypeError, match="callable"):
            transaction.on_commit(coroutine)
        coroutine.close()


# Where and when


async def test_hook_runs_in_the_owners_task(server: Server) -> None:
    """Hooks run on the task that leaves the block, in its context, after the commit."""
    seen: list[Any] = []
    word: contextvars.ContextVar[str] = contextvars.ContextVar("word")

    async def hook() -> None:
        assert not connection.in_atomic_block
        seen.append((asyncio.current_task(), word.get(), committed(server)))
        word.set("of the hook")

    async def child() -> None:
        word.set("of the child")
        await Author.objects.acreate(name="Ada")
        transaction.on_commit(hook)

    async def own() -> None:
        word.set("of the owner")
        async with transaction.atomic():
            await asyncio.create_task(child())
            transaction.on_commit(hook)
        assert word.get() == "of the hook"

    task = asyncio.create_task(own())
    await task
    assert seen == [(task, "of the owner", ["Ada"]), (task, "of the hook", ["Ada"])]


async def test_hook_holds_no_connection() -> None:
    """The only connection of the pool was given back: a hook's tasks may use it."""
    wrapper = small_pool()
    ran: list[int] = []

    async def hook() -> None:
        assert on_loan(wrapper) == 0
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(Author.objects.acount())
        async with transaction.atomic():
            await Author.objects.acreate(name=f"hook {len(ran)}")
        with detached():
            ran.append(await asyncio.create_task(Author.objects.acount()))

    async with transaction.atomic():
        await Author.objects.acreate(name="Ada")
        transaction.on_commit(hook)
        transaction.on_commit(hook)
    assert ran == [2, 3]


async def test_hook_registers_hooks(server: Server) -> None:
    """A hook may use transactions and hooks of its own, which run at their ends."""
    ran: list[str] = []

    def note(word: str) -> Callable[[], Coroutine[Any, Any, None]]:
        async def hook() -> None:
            ran.append(f"{word} {await Author.objects.acount()}")

        return hook

    async def hook() -> None:
        await aon_commit(note("at once"))
        async with transaction.atomic():
            await Author.objects.acreate(name="hook")
            transaction.on_commit(note("inner"))
        ran.append("end")

    async with transaction.atomic():
        transaction.on_commit(hook)
        transaction.on_commit(note("last"))
    assert ran == ["at once 0", "inner 1", "end", "last 1"]


async def test_hook_does_not_run_after_a_rollback() -> None:
    """A hook is not even called after a rollback, nor when its savepoint was rolled back."""
    ran: list[Any] = []
    with suppress(Failed):
        async with transaction.atomic():
            transaction.on_commit(Hook(ran, "rolled back"))
            raise Failed
    async with transaction.atomic():
        with suppress(Failed):
            async with transaction.atomic():
                transaction.on_commit(Hook(ran, "of the savepoint"))
                async with transaction.atomic():
                    transaction.on_commit(Hook(ran, "of one inside"))
                raise Failed
        transaction.on_commit(Hook(ran, "kept"))
    async with transaction.atomic():
        transaction.on_commit(Hook(ran, "set_rollback"))
        transaction.set_rollback(True)
    assert [name for name, _ in ran] == ["kept"]


async def test_hook_of_a_child_that_is_rolled_back(server: Server) -> None:
    """Of tasks with blocks of their own, only hooks of those that were left well run."""
    ran: list[Any] = []

    async def child(number: int) -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name=str(number))
            transaction.on_commit(Hook(ran, number))
            if number % 2:
                raise Failed

    async with transaction.atomic():
        await asyncio.gather(*map(child, range(5)), return_exceptions=True)
        assert ran == []
    assert ran == [(0, 3), (2, 3), (4, 3)]


async def test_hooks_of_a_transaction_by_hand(server: Server) -> None:
    """With autocommit off, hooks of a block run once autocommit is on again, as Django's do."""
    ran: list[Any] = []
    await aset_autocommit(False)
    async with transaction.atomic():
        await Author.objects.acreate(name="Ada")
        transaction.on_commit(Hook(ran, "block"))
    with pytest.raises(TransactionManagementError, match="manual transaction management"):
        transaction.on_commit(Hook(ran, "refused"))
    await bridged(transaction.commit)()
    assert ran == []
    await aset_autocommit(True)
    assert ran == [("block", 1)]


async def test_hooks_of_the_aliases_are_apart(server: Server) -> None:
    """A hook belongs to the transaction of its database."""
    ran: list[str] = []

    async def note(word: str) -> None:
        ran.append(word)

    async with transaction.atomic():
        async with transaction.atomic(using="other"):
            await aon_commit(functools.partial(note, "default"))
            await aon_commit(functools.partial(note, "other"), using="other")
        assert ran == ["other"]
    assert ran == ["other", "default"]


# Errors and cancellation


async def fail() -> None:
    await Author.objects.acount()
    raise Failed("of the hook")


@pytest.mark.parametrize(
    "wrap", [lambda method: method, functools.partial], ids=["method", "partial"]
)
async def test_registering_runs_no_query(wrap: Callable[..., Any]) -> None:
    """A queryset's method, whose repr() would run the query, is registered without a statement."""
    statements: list[str] = []

    def note(execute: Callable[..., Any], sql: str, *args: Any) -> Any:
        statements.append(sql)
        return execute(sql, *args)

    with connection.execute_wrapper(note):
        async with transaction.atomic():
            transaction.on_commit(wrap(Author.objects.all().acount))
        assert [sql.split()[1] for sql in statements] == ["COUNT(*)"]


@pytest.mark.parametrize("inside", [True, False], ids=["after the commit", "at once"])
async def test_robust_hook_that_fails(
    server: Server, caplog: pytest.LogCaptureFixture, inside: bool
) -> None:
    """A robust hook's error is logged with its name, and the next ones run."""
    ran: list[Any] = []
    if inside:
        async with transaction.atomic():
            await Author.objects.acreate(name="Ada")
            transaction.on_commit(fail, robust=True)
            transaction.on_commit(functools.partial(fail), robust=True)
            transaction.on_commit(Hook(ran, "next"), robust=True)
        assert committed(server) == ["Ada"]
        assert ran == [("next", 1)]
    else:
        await aon_commit(fail, robust=True)
        await aon_commit(functools.partial(fail), robust=True)
    assert [record.exc_info[1].args for record in caplog.records if record.exc_info] == [
        ("of the hook",)
    ] * 2
    assert "Error calling fail in on_commit()" in caplog.records[0].getMessage()
    assert "functools.partial(<function fail" in caplog.records[1].getMessage()


async def test_hook_that_fails(server: Server) -> None:
    """Another hook's error leaves the block and stops the later ones; the commit stands."""
    ran: list[Any] = []
    with pytest.raises(Failed, match="of the hook"):
        async with transaction.atomic():
            await Author.objects.acreate(name="Ada")
            transaction.on_commit(Hook(ran, "first"))
            transaction.on_commit(fail)
            transaction.on_commit(Hook(ran, "lost"))
    assert committed(server) == ["Ada"]
    assert ran == [("first", 1)]
    async with transaction.atomic():
        await Author.objects.acreate(name="Bea")
        transaction.on_commit(Hook(ran, "next"))
    assert ran == [("first", 1), ("next", 2)]


async def test_hook_with_a_database_error(server: Server) -> None:
    """A database error in a hook is that of its own statement, and breaks nothing else."""

    async def duplicate() -> None:
        await Author.objects.acreate(name="Ada")

    with pytest.raises(IntegrityError):
        async with transaction.atomic():
            await Author.objects.acreate(name="Ada")
            transaction.on_commit(duplicate)
    assert not connection.in_atomic_block
    assert not connection.needs_rollback
    async with transaction.atomic():
        await Author.objects.acreate(name="Bea")
    assert committed(server) == ["Ada", "Bea"]


@pytest.mark.parametrize("robust", [False, True])
async def test_cancelled_hook(server: Server, robust: bool) -> None:
    """Cancelled in a hook, CancelledError leaves, robust or not; the commit stands."""
    ran: list[Any] = []
    waiting = asyncio.Event()

    async def wait() -> None:
        waiting.set()
        await asyncio.Event().wait()

    async def own() -> None:
        with pytest.raises(asyncio.CancelledError):
            async with transaction.atomic():
                await Author.objects.acreate(name="Ada")
                transaction.on_commit(wait, robust=robust)
                transaction.on_commit(Hook(ran, "lost"))
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()
        async with transaction.atomic():
            await Author.objects.acreate(name="Bea")
            transaction.on_commit(Hook(ran, "next"))

    task = asyncio.create_task(own())
    await waiting.wait()
    task.cancel()
    await task
    assert committed(server) == ["Ada", "Bea"]
    assert ran == [("next", 2)]


async def test_cancelled_in_a_hooks_statement(server: Server) -> None:
    """Cancelled in a hook's statement, that is stopped in the server; the commit stands."""

    def sleep() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(600)")

    async def own() -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name="Ada")
            transaction.on_commit(bridged(sleep))

    task = asyncio.create_task(own())
    await until(lambda: running(server, "active", "%pg_sleep%") == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert running(server, "active", "%pg_sleep%") == 0
    assert committed(server) == ["Ada"]


# Without the bridge


async def asynchronous(ran: list[str]) -> None:
    ran.append("asynchronous")


@pytest.mark.parametrize(
    "hook",
    [
        pytest.param(asynchronous, id="coroutine function"),
        pytest.param(lambda ran: asynchronous(ran), id="lambda"),
    ],
)
async def test_on_the_loop_outside_a_transaction(hook: Callable[..., Any]) -> None:
    """Unbridged on a running loop it would have to be awaited at once: a RuntimeError says how."""
    ran: list[str] = []
    with pytest.raises(RuntimeError, match=r"await pgbackend\.transaction\.aon_commit"):
        transaction.on_commit(functools.partial(hook, ran))
    assert ran == []
    await aon_commit(functools.partial(hook, ran))
    assert ran == ["asynchronous"]


async def test_synchronous_hook_on_the_loop_outside_a_transaction() -> None:
    """A synchronous one runs at once: nothing about it waits."""
    ran: list[str] = []
    transaction.on_commit(lambda: ran.append("synchronous"))
    assert ran == ["synchronous"]


def test_on_the_synchronous_path(server: Server) -> None:
    """In a thread without a loop hooks are awaited by async_to_sync, after the commit."""
    ran: list[Any] = []
    with transaction.atomic():
        Author.objects.create(name="Ada")
        for number, kind in enumerate(KINDS):
            if kind is not a_bridged_function:
                transaction.on_commit(kind(ran, number))
        assert ran == []
    assert ran == [
        (number, 1) for number, kind in enumerate(KINDS) if kind is not a_bridged_function
    ]
    transaction.on_commit(Hook(ran, "at once"))
    assert ran[-1] == ("at once", 1)


def test_bridged_function_on_the_synchronous_path(server: Server) -> None:
    """A bridged function is such a hook as well: it goes back to the thread that waits for it."""
    ran: list[Any] = []
    with transaction.atomic():
        Author.objects.create(name="Ada")
        transaction.on_commit(a_bridged_function(ran, "bridged"))
    assert ran == [("bridged", 1)]


def test_errors_on_the_synchronous_path(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Robust and other hooks that fail do there what they do in the bridge."""
    ran: list[Any] = []
    with pytest.raises(Failed), transaction.atomic():
        Author.objects.create(name="Ada")
        transaction.on_commit(fail, robust=True)
        transaction.on_commit(Hook(ran, "first"))
        transaction.on_commit(fail)
        transaction.on_commit(Hook(ran, "lost"))
    assert ran == [("first", 1)]
    assert committed(server) == ["Ada"]
    assert "Error calling fail in on_commit()" in caplog.text


def test_in_a_coroutine_that_a_thread_waits_for(server: Server) -> None:
    """In async_to_sync, under WSGI say, a hook waits for the transaction of the thread."""
    ran: list[Any] = []

    async def view() -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name="Ada")
            await aon_commit(Hook(ran, "inner"))
        assert ran == []
        await aon_commit(Hook(ran, "outer"))

    with transaction.atomic():
        async_to_sync(view)()
        assert ran == []
    assert ran == [("inner", 1), ("outer", 1)]


@pytest.mark.process
def test_in_a_command() -> None:
    """A script without a loop, as a manage.py command is, awaits its hooks and ends cleanly."""
    output = run_script(
        """
        conf["DATABASES"]["default"]["OPTIONS"]["application_name"] = "pgbackend-script"
        settings.configure(**conf)
        import django
        django.setup()
        from django.db import transaction
        from tests.models import Author

        async def hook(word):
            await asyncio.sleep(0)
            print(word, await Author.objects.acount())

        with transaction.atomic():
            Author.objects.create(name="Ada")
            transaction.on_commit(lambda: hook("lambda"))
            transaction.on_commit(lambda: print("synchronous"))
            print("block")
        transaction.on_commit(lambda: hook("at once"))
        """
    )
    assert output.splitlines() == ["block", "lambda 1", "synchronous", "at once 1"]


# Captured


def captured(ran: list[Any], *, execute: bool) -> list[Any]:
    """Register hooks while they are captured, in a block that is not committed."""
    with suppress(Failed), transaction.atomic():
        with TestCase.captureOnCommitCallbacks(execute=execute) as callbacks:
            Author.objects.create(name="Ada")
            transaction.on_commit(Hook(ran, "object"))
            transaction.on_commit(coroutine_function(ran, "function"))
            transaction.on_commit(synchronous(ran, "synchronous"))
            transaction.on_commit(fail, robust=True)
        raise Failed
    return callbacks


EXPECTED = [("object", 1), ("function", 1), ("synchronous", 1)]


def test_captured_on_the_synchronous_path() -> None:
    """captureOnCommitCallbacks(execute=True) awaits hooks that it captured."""
    ran: list[Any] = []
    assert len(captured(ran, execute=True)) == 4
    assert ran == EXPECTED


async def test_captured_in_the_bridge() -> None:
    """The same in the bridge, without leaving the transaction."""
    ran: list[Any] = []
    assert len(await bridged(captured)(ran, execute=True)) == 4
    assert ran == EXPECTED


@bridged
async def test_captured_in_bridged_asynchronous_code() -> None:
    """The same in an asynchronous test, which the runner bridges whole."""
    ran: list[Any] = []
    with suppress(Failed):
        async with transaction.atomic():
            with TestCase.captureOnCommitCallbacks(execute=True) as callbacks:
                await Author.objects.acreate(name="Ada")
                transaction.on_commit(Hook(ran, "object"))
                transaction.on_commit(lambda: Hook(ran, "lambda")())
            raise Failed
    assert len(callbacks) == 2
    assert ran == [("object", 1), ("lambda", 1)]


async def test_captured_without_execution() -> None:
    """Without execute they are not called; who calls one gets what it can await."""
    ran: list[Any] = []
    with suppress(Failed):
        async with transaction.atomic():
            with TestCase.captureOnCommitCallbacks() as callbacks:
                transaction.on_commit(Hook(ran, "later"))
            assert ran == []
            await bridged(callbacks[0])()
            raise Failed
    assert ran == [("later", 0)]


async def test_hooks_are_registered_as_they_are() -> None:
    """A synchronous function is found in run_on_commit as the one that was registered."""

    def hook() -> None:
        pass

    with suppress(Failed):
        async with transaction.atomic():
            transaction.on_commit(hook)
            assert [function for _, function, _ in connection.run_on_commit] == [hook]
            raise Failed
