"""Functions for execute_wrapper that a thread of a request adds, and that need that thread."""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import uvloop
from asgiref.sync import ThreadSensitiveContext, async_to_sync, sync_to_async
from django.db import IntegrityError, connection, transaction

from pgbackend import bridged
from pgbackend.tasks.request import serving_with
from tests.models import Author
from tests.support.limits import PATIENCE
from tests.support.server import Server

local = threading.local()

View = Callable[[], Awaitable[Any]]
Function = Callable[..., Any]


async def serve(function: Function, view: View, *, after: View | None = None) -> Any:
    """Serve *view* as a request below synchronous middleware, which adds *function*.

    *after* comes when the middleware has returned, in the request.
    """

    def middleware() -> Any:
        local.name = "middleware"
        with connection.execute_wrapper(function):
            assert function in connection.execute_wrappers
            return async_to_sync(bridged(view))()

    async with ThreadSensitiveContext():
        with serving_with({"default": connection._connections["default"]}):
            result = await sync_to_async(middleware)()
            if after is not None:
                await bridged(after)()
    return result


class Noting:
    """A function that notes what it finds in its thread, and how often it was called."""

    def __init__(self, *, executes_first: bool = False) -> None:
        self.found: list[str] = []
        self.threads: set[int] = set()
        self.executes_first = executes_first

    def __call__(self, execute: Function, sql: str, *args: Any) -> Any:
        self.threads.add(threading.get_ident())
        if self.executes_first:
            result = execute(sql, *args)
            self.found.append(f"{local.name}: {sql.split()[0]}")
            return result
        self.found.append(f"{local.name}: {sql.split()[0]}")
        return execute(sql, *args)


async def count() -> int:
    return await Author.objects.acount()


LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])


def run(new_loop: Any, main: Awaitable[Any]) -> Any:
    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(main)


@LOOPS
@pytest.mark.parametrize("executes_first", [False, True])
def test_called_in_its_thread(new_loop: Any, executes_first: bool, server: Server) -> None:
    """It finds its thread's state, once a statement, and the statements are executed once."""
    note = Noting(executes_first=executes_first)

    async def view() -> int:
        author = await Author.objects.acreate(name="Ada")
        await asyncio.gather(*(Author.objects.acount() for _ in range(3)))
        author.name = "Ida"
        author.save()
        assert [each.name for each in Author.objects.all()] == ["Ida"]
        async for each in Author.objects.aiterator(chunk_size=1):
            assert each.name == "Ida"
        return await Author.objects.filter(pk=author.pk).aupdate(name="Eve")

    assert run(new_loop, serve(note, view)) == 1
    kinds = ["INSERT", *["SELECT"] * 3, "UPDATE", "SELECT", "SELECT", "UPDATE"]
    assert note.found == [f"middleware: {kind}" for kind in kinds]
    # The first call was on the loop, in vain.
    assert len(note.threads) == 2
    assert server.all("SELECT name FROM tests_author") == [("Eve",)]


async def test_side_by_side() -> None:
    """Requests side by side have each its own thread's state."""
    notes = [Noting() for _ in range(5)]
    barrier = asyncio.Barrier(5)

    async def view() -> None:
        await barrier.wait()
        await asyncio.gather(*(Author.objects.acount() for _ in range(4)))

    await asyncio.gather(*(serve(note, view) for note in notes))
    assert [note.found for note in notes] == [["middleware: SELECT"] * 4] * 5


async def test_errors_pass(server: Server) -> None:
    """An error of the statement, and one of the function, leave both threads as they are."""
    note = Noting()

    async def duplicate() -> None:
        for _ in range(2):
            await Author.objects.acreate(name="Ada")

    with pytest.raises(IntegrityError):
        await serve(note, duplicate)
    assert note.found == ["middleware: INSERT"] * 2

    def refuse(*args: Any) -> None:
        assert local.name == "middleware"
        raise LookupError("no queries here")

    with pytest.raises(LookupError, match="no queries here"):
        await serve(refuse, count)
    assert server.one("SELECT count(*) FROM tests_author") == 1


async def test_other_errors_are_errors() -> None:
    """An AttributeError that has nothing to do with a thread's state is the function's own."""

    def fail(*args: Any) -> None:
        _ = object().name  # type: ignore[attr-defined]

    with pytest.raises(AttributeError, match="name"):
        await serve(fail, count)


class Records(logging.Handler):
    """What the package's logger was given."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The messages of the package's own logger, whatever other tests have done to logging."""
    logger, records = logging.getLogger("pgbackend"), Records()
    monkeypatch.setattr(logger, "disabled", False)
    monkeypatch.setattr(logger.manager, "disable", logging.NOTSET)
    monkeypatch.setattr(logger, "filters", [])
    level = logger.level
    logger.setLevel(logging.WARNING)
    logger.addHandler(records)
    yield records.messages
    logger.removeHandler(records)
    logger.setLevel(level)


async def test_in_a_transaction(logged: list[str]) -> None:
    """In a transaction it is not called, which is logged once: its thread may wait for that."""
    note = Noting()

    @transaction.atomic
    def in_thread(name: str) -> None:
        Author.objects.create(name=name)
        Author.objects.filter(name=name).update(name=f"{name}!")

    async def nested(name: str) -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name=name)
            await Author.objects.filter(name=name).aupdate(name=f"{name}!")

    async def view() -> None:
        async with transaction.atomic():
            await asyncio.gather(
                nested("a"),
                sync_to_async(in_thread)("b"),
                Author.objects.acount(),
                sync_to_async(Author.objects.count)(),
                sync_to_async(in_thread)("c"),
                nested("d"),
            )
        await Author.objects.acount()

    await serve(note, view)
    assert await Author.objects.filter(name__endswith="!").acount() == 4
    assert note.found == ["middleware: SELECT"]
    (message,) = logged
    assert "keeps state in a threading.local" in message


async def test_task_that_outlives_the_middleware() -> None:
    """When the middleware has returned, nothing of what the request goes on with calls it."""
    note, go = Noting(), asyncio.Event()
    tasks: list[asyncio.Task[int]] = []

    async def later() -> int:
        await go.wait()
        return await Author.objects.acount()

    async def view() -> None:
        tasks.append(asyncio.create_task(later()))
        await Author.objects.acount()

    async def after() -> None:
        go.set()
        assert await tasks[0] == 0

    await serve(note, view, after=after)
    assert note.found == ["middleware: SELECT"]


async def test_thread_of_its_own() -> None:
    """For what another thread of the request executes on its own connection it is not called."""
    note = Noting()

    def in_thread() -> int:
        try:
            return Author.objects.count()
        finally:
            connection.close()

    async def view() -> int:
        return await asyncio.to_thread(in_thread)

    assert await serve(note, view) == 0
    assert note.found == []


@LOOPS
@pytest.mark.parametrize("where", ["before", "statement"])
def test_cancelled(new_loop: Any, where: str, server: Server) -> None:
    """Cancelled while the function works, or while its statement runs, nothing hangs or stays."""
    entered, leave = threading.Event(), threading.Event()
    outcomes: list[str] = []

    def wait(execute: Function, *args: Any) -> Any:
        assert local.name == "middleware"
        entered.set()
        try:
            if where == "before":
                leave.wait(PATIENCE)
            return execute(*args)
        except BaseException as error:
            outcomes.append(type(error).__name__)
            raise

    async def view() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(%s)", [60 if where == "statement" else 0])

    async def main() -> None:
        task = asyncio.create_task(serve(wait, view))
        await asyncio.to_thread(entered.wait, 30)
        if where == "statement":
            sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
            async with asyncio.timeout(PATIENCE):
                while not await asyncio.to_thread(server.one, sleeping):
                    pass
        task.cancel()
        await asyncio.sleep(0)
        leave.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await Author.objects.acount() == 0

    run(new_loop, main())
    assert outcomes in (["CancelledError"], [])


async def test_equals_its_function() -> None:
    """It is found in and removed from execute_wrappers as the function that was added."""
    note = Noting()

    def middleware() -> None:
        with connection.execute_wrapper(note):
            functions = connection.execute_wrappers
            assert note in functions
            assert functions.index(note) == 0
            assert functions[0] == note
            assert len({functions[0], note}) == 1
            assert print not in functions

    async with ThreadSensitiveContext():
        with serving_with({"default": connection._connections["default"]}):
            await sync_to_async(middleware)()
