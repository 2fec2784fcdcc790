"""Transactions: Django's own, on the state of a task and of the tasks started in it."""

import asyncio
import gc
import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from django.conf import settings
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.db.transaction import TransactionManagementError

from pgbackend import await_bridged, bridged
from tests.models import Author
from tests.support.limits import PATIENCE
from tests.support.server import Server
from tests.support.sessions import apid, asleep, committed, running, sleep, until
from tests.support.wrapper import AddAlias


@pytest.fixture
def django_queries(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The statements of the test, by Django's own log."""
    statements: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            statements.append(record.args[1])  # type: ignore[index]

    handler = Handler()
    logger = logging.getLogger("django.db.backends")
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    monkeypatch.setattr(settings, "DEBUG", True)
    yield statements
    logger.removeHandler(handler)
    logger.setLevel(level)
    logger.propagate = propagate


# Bridged, in one task


async def test_bridged_atomic_commits(server: Server) -> None:
    """A bridged `with atomic()` shows its rows to others when it is left, and not before."""

    @bridged
    def work() -> None:
        with transaction.atomic():
            Author.objects.create(name="Ada")
            assert committed(server) == []
            assert connection.in_atomic_block
        assert not connection.in_atomic_block

    await work()
    assert committed(server) == ["Ada"]


async def test_async_with_atomic_commits(server: Server) -> None:
    """`async with atomic()` shows its rows to others when it is left, and not before."""
    async with transaction.atomic():
        await Author.objects.acreate(name="Ada")
        assert committed(server) == []
        assert connection.in_atomic_block
    assert not connection.in_atomic_block
    assert committed(server) == ["Ada"]


async def test_bridged_atomic_rolls_back(server: Server) -> None:
    """An exception that leaves a bridged `with atomic()` takes its rows along."""

    @bridged
    def work() -> None:
        with transaction.atomic():
            Author.objects.create(name="Ada")
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        await work()
    assert committed(server) == []
    assert running(server, "idle in transaction%") == 0


async def test_async_with_atomic_rolls_back(server: Server) -> None:
    """An exception that leaves `async with atomic()` takes its rows along."""

    async def work() -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name="Ada")
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        await work()
    assert committed(server) == []
    await Author.objects.acreate(name="Bea")
    assert committed(server) == ["Bea"]


@pytest.mark.parametrize("outer_fails", [False, True])
@pytest.mark.parametrize("inner_fails", [False, True])
async def test_nested_atomic_is_a_savepoint(
    server: Server, outer_fails: bool, inner_fails: bool
) -> None:
    """A nested block that fails loses its own rows only; the outer one loses all."""
    with suppress(KeyError):
        async with transaction.atomic():
            await Author.objects.acreate(name="before")
            with suppress(KeyError):
                async with transaction.atomic():
                    await Author.objects.acreate(name="inner")
                    if inner_fails:
                        raise KeyError
            await Author.objects.acreate(name="then")
            if outer_fails:
                raise KeyError
    inner = [] if inner_fails else ["inner"]
    assert committed(server) == ([] if outer_fails else ["before", *inner, "then"])


async def test_savepoint_false_breaks_the_outer_block(server: Server) -> None:
    """After a failed block without savepoint the outer one refuses queries and rolls back."""
    async with transaction.atomic():
        await Author.objects.acreate(name="Ada")
        with suppress(KeyError):
            async with transaction.atomic(savepoint=False):
                raise KeyError("inner")
        with pytest.raises(TransactionManagementError, match="end of the 'atomic' block"):
            await Author.objects.acount()
    assert committed(server) == []


async def test_savepoint_false_sends_no_savepoint(
    server: Server, django_queries: list[str]
) -> None:
    """A block with savepoint=False joins the outer one without a statement of its own."""
    async with transaction.atomic():
        async with transaction.atomic(savepoint=False):
            await Author.objects.acreate(name="Ada")
        async with transaction.atomic():
            await Author.objects.acreate(name="Bea")
    assert [sql.split()[0] for sql in django_queries if "SAVEPOINT" in sql] == [
        "SAVEPOINT",
        "RELEASE",
    ]
    assert committed(server) == ["Ada", "Bea"]


async def test_durable_refuses_to_be_nested(server: Server) -> None:
    """durable=True is refused inside another block and commits by itself outside."""
    async with transaction.atomic():
        with pytest.raises(RuntimeError, match="durable"):
            async with transaction.atomic(durable=True):
                pass
        await Author.objects.acreate(name="Ada")
    async with transaction.atomic(durable=True):
        await Author.objects.acreate(name="Bea")
    assert committed(server) == ["Ada", "Bea"]


async def test_set_rollback(server: Server) -> None:
    """set_rollback(True) makes the block roll back although it does not fail."""

    @bridged
    def work() -> None:
        with transaction.atomic():
            Author.objects.create(name="Ada")
            transaction.set_rollback(True)
            assert transaction.get_rollback()

    await work()
    assert committed(server) == []
    async with transaction.atomic():
        await Author.objects.acreate(name="Bea")
        transaction.set_rollback(True)
    assert committed(server) == []


async def test_savepoints_by_hand(server: Server) -> None:
    """savepoint_rollback() undoes what came after its savepoint, savepoint_commit() keeps it."""
    # Renamed in Django 6.1.
    create = getattr(transaction, "savepoint_create", transaction.savepoint)

    @bridged
    def work() -> None:
        with transaction.atomic():
            Author.objects.create(name="Ada")
            savepoint = create()
            Author.objects.create(name="Bea")
            transaction.savepoint_rollback(savepoint)
            savepoint = create()
            Author.objects.create(name="Cy")
            transaction.savepoint_commit(savepoint)

    await work()
    assert committed(server) == ["Ada", "Cy"]


async def test_integrity_error_in_a_nested_block(server: Server) -> None:
    """An IntegrityError leaves the outer transaction usable if a nested block caught it."""
    async with transaction.atomic():
        await Author.objects.acreate(name="Ada")
        with pytest.raises(IntegrityError):
            async with transaction.atomic():
                await Author.objects.acreate(name="Ada")
        await Author.objects.acreate(name="Bea")
    assert committed(server) == ["Ada", "Bea"]


async def test_database_error_without_a_nested_block(server: Server) -> None:
    """A database error that no nested block caught makes the transaction refuse queries."""
    async with transaction.atomic():
        await Author.objects.acreate(name="Ada")
        with pytest.raises(IntegrityError):
            await Author.objects.acreate(name="Ada")
        with pytest.raises(TransactionManagementError):
            await Author.objects.acount()
    assert committed(server) == []
    assert await Author.objects.acount() == 0


async def test_one_connection_for_a_transaction() -> None:
    """All statements of a transaction run on one connection, nested blocks included."""
    async with transaction.atomic():
        first = await apid()
        await Author.objects.acreate(name="Ada")
        async with transaction.atomic():
            second = await apid()
        async for _ in Author.objects.all():
            assert await apid() == first
        third = await apid()
    assert first == second == third


async def test_atomic_decorates_a_coroutine_function(server: Server) -> None:
    """`@transaction.atomic` on an `async def` makes each call a transaction of its own."""

    @transaction.atomic
    async def create(name: str) -> int:
        await Author.objects.acreate(name=name)
        assert connection.in_atomic_block
        if name == "bad":
            raise KeyError(name)
        return await apid()

    results = await asyncio.gather(*map(create, ["Ada", "bad", "Bea"]), return_exceptions=True)
    assert [type(result) for result in results] == [int, KeyError, int]
    assert committed(server) == ["Ada", "Bea"]


async def test_atomic_decorator_takes_arguments(server: Server) -> None:
    """`@transaction.atomic(durable=True)` on an `async def` keeps Django's arguments."""

    @transaction.atomic(durable=True)
    async def create() -> None:
        await Author.objects.acreate(name="Ada")

    await create()
    async with transaction.atomic():
        with pytest.raises(RuntimeError, match="durable"):
            await create()
    assert committed(server) == ["Ada"]


async def test_synchronous_and_asynchronous_blocks_nest(server: Server) -> None:
    """Blocks entered by `with` and by `async with` nest in each other in any order."""

    async def innermost() -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name="lost")
            raise KeyError("innermost")

    @bridged
    def middle() -> None:
        with transaction.atomic():
            Author.objects.create(name="middle")
            with pytest.raises(KeyError):
                await_bridged(innermost())
            assert Author.objects.count() == 2

    async with transaction.atomic():
        await Author.objects.acreate(name="outer")
        await middle()
        assert committed(server) == []
    assert committed(server) == ["middle", "outer"]


async def test_close_inside_atomic(server: Server) -> None:
    """Closing the connection inside a block loses its rows; the next block works."""

    @bridged
    def work() -> None:
        with transaction.atomic():
            Author.objects.create(name="Ada")
            connection.close()
            with pytest.raises(DatabaseError):
                Author.objects.count()

    await work()
    assert committed(server) == []
    async with transaction.atomic():
        await Author.objects.acreate(name="Bea")
    assert committed(server) == ["Bea"]


# Autocommit off


@pytest.mark.parametrize(
    ("end", "kept"), [(transaction.commit, ["Ada"]), (transaction.rollback, [])]
)
async def test_transaction_by_hand(
    server: Server, end: Callable[[], None], kept: list[str]
) -> None:
    """With autocommit off the task keeps one connection until commit() or rollback() decide."""
    await bridged(transaction.set_autocommit)(False)
    assert not await bridged(transaction.get_autocommit)()
    await Author.objects.acreate(name="Ada")
    first = await apid()
    assert committed(server) == []
    await bridged(end)()
    assert committed(server) == kept
    assert await apid() == first
    await bridged(end)()
    await bridged(transaction.set_autocommit)(True)
    await Author.objects.acreate(name="Bea")
    assert committed(server) == [*kept, "Bea"]


async def test_rollback_after_an_error(server: Server) -> None:
    """With autocommit off, rollback() makes the connection usable after an error."""

    @bridged
    def work() -> None:
        transaction.set_autocommit(False)
        try:
            Author.objects.create(name="Ada")
            with pytest.raises(IntegrityError):
                Author.objects.bulk_create([Author(name="Ada")])
            with pytest.raises(DatabaseError):
                sleep(0)
            transaction.rollback()
            Author.objects.create(name="Bea")
            transaction.commit()
        finally:
            transaction.set_autocommit(True)

    await work()
    assert committed(server) == ["Bea"]


async def test_commit_inside_atomic_is_refused() -> None:
    """commit(), rollback() and set_autocommit() inside a block raise Django's error."""

    @bridged
    def work() -> None:
        with transaction.atomic():
            for call in (
                transaction.commit,
                transaction.rollback,
                lambda: transaction.set_autocommit(True),
            ):
                with pytest.raises(TransactionManagementError, match="'atomic' block"):
                    call()
            assert Author.objects.count() == 0

    await work()


# Hooks


async def test_on_commit_runs_in_order(server: Server) -> None:
    """Hooks run after the commit, in the order they were registered; not those undone."""
    ran: list[Any] = []

    @bridged
    def work() -> None:
        with transaction.atomic():
            Author.objects.create(name="Ada")
            transaction.on_commit(lambda: ran.append(committed(server)))
            with suppress(KeyError), transaction.atomic():
                transaction.on_commit(lambda: ran.append("undone"))
                raise KeyError
            with transaction.atomic():
                transaction.on_commit(lambda: ran.append("nested"))
            transaction.on_commit(lambda: ran.append("last"))
            assert ran == []

    await work()
    assert ran == [["Ada"], "nested", "last"]


async def test_on_commit_does_not_run_after_rollback() -> None:
    """No hook of a block that rolled back runs, not even after a later commit."""
    ran: list[str] = []
    with suppress(KeyError):
        async with transaction.atomic():
            transaction.on_commit(lambda: ran.append("lost"))
            raise KeyError
    async with transaction.atomic():
        transaction.on_commit(lambda: ran.append("kept"))
    assert ran == ["kept"]


async def test_on_commit_outside_a_transaction_runs_at_once() -> None:
    """Outside a transaction a hook runs when it is registered."""
    ran: list[str] = []
    await bridged(transaction.on_commit)(lambda: ran.append("now"))
    assert ran == ["now"]


async def test_on_commit_robust(caplog: pytest.LogCaptureFixture) -> None:
    """A failing robust hook is logged and lets others run; another one's error is raised."""
    ran: list[str] = []

    def fail() -> None:
        raise KeyError("hook")

    async with transaction.atomic():
        transaction.on_commit(fail, robust=True)
        transaction.on_commit(lambda: ran.append("next"))
    assert ran == ["next"]
    assert "Error calling" in caplog.text
    with pytest.raises(KeyError, match="hook"):
        async with transaction.atomic():
            transaction.on_commit(fail)
    async with transaction.atomic():
        await Author.objects.acreate(name="Ada")
    assert await Author.objects.acount() == 1


async def test_on_commit_hook_uses_the_database(server: Server) -> None:
    """A hook runs outside the transaction and can query and begin one of its own."""

    def hook() -> None:
        assert not connection.in_atomic_block
        with transaction.atomic():
            Author.objects.create(name=f"after {Author.objects.count()}")

    async with transaction.atomic():
        await Author.objects.acreate(name="Ada")
        transaction.on_commit(hook)
    assert committed(server) == ["Ada", "after 1"]


async def test_on_commit_hook_holds_no_connection(add_alias: AddAlias) -> None:
    """A hook may wait for another task that needs the only connection of the pool."""
    alias = add_alias({"pool": {"min_size": 0, "max_size": 1, "timeout": 5}})
    found: list[int] = []

    async def count() -> None:
        found.append(await Author.objects.using(alias).acount())

    def hook() -> None:
        await_bridged(asyncio.create_task(count()))

    async with transaction.atomic(using=alias):
        await Author.objects.using(alias).acreate(name="Ada")
        transaction.on_commit(hook, using=alias)
    assert found == [1]


# Tasks started inside a transaction


async def test_commit_waits_for_a_childs_block(server: Server) -> None:
    """The owner's commit waits until a child has left its nested block."""
    entered, leaving, release = (asyncio.Event() for _ in range(3))

    async def child() -> None:
        async with transaction.atomic():
            entered.set()
            await release.wait()
            await Author.objects.acreate(name="child")

    async def owner() -> None:
        async with transaction.atomic():
            nested = asyncio.create_task(child())
            await entered.wait()
            await asyncio.sleep(0)
            leaving.set()
        assert committed(server) == ["child"]
        await nested

    task = asyncio.create_task(owner())
    # From here to its first wait in __aexit__ the owner does not give the loop away.
    await leaving.wait()
    release.set()
    await task


async def test_statement_waits_for_a_siblings_block() -> None:
    """A child's statement waits while a sibling is inside a nested block."""
    entered, release = asyncio.Event(), asyncio.Event()
    order: list[str] = []

    async def holder() -> None:
        async with transaction.atomic():
            entered.set()
            await release.wait()
            order.append("left")

    async def sibling() -> None:
        await entered.wait()
        await Author.objects.acount()
        order.append("counted")

    async with transaction.atomic():
        tasks = asyncio.gather(holder(), sibling())
        await entered.wait()
        # Behind what the sibling does up to its first wait.
        await asyncio.sleep(0)
        release.set()
        await tasks
    assert order == ["left", "counted"]


async def test_turn_that_never_comes(add_alias: AddAlias) -> None:
    """Waiting for a turn ends after turn_timeout in a RuntimeError that names holder and cures."""
    alias = add_alias({"turn_timeout": 0.1})
    entered, release = asyncio.Event(), asyncio.Event()

    async def holder() -> None:
        async with transaction.atomic(using=alias):
            entered.set()
            await release.wait()

    async with transaction.atomic(using=alias):
        task = asyncio.create_task(holder(), name="the-holder")
        await entered.wait()
        with pytest.raises(RuntimeError, match=r"0\.1 s .*the-holder.*detached\(\).*turn_timeout"):
            async with asyncio.timeout(PATIENCE):
                await asyncio.create_task(apid(alias))
        release.set()
        await task
        assert await Author.objects.using(alias).acount() == 0


async def test_child_leaves_a_transaction_that_was_dropped(
    add_alias: AddAlias, server: Server
) -> None:
    """A nested block left after the owner gave up waiting for it raises RuntimeError."""
    alias = add_alias({"turn_timeout": 0.1})
    entered, release = asyncio.Event(), asyncio.Event()

    async def child() -> None:
        async with transaction.atomic(using=alias):
            await Author.objects.using(alias).acreate(name="lost")
            entered.set()
            await release.wait()

    with pytest.raises(RuntimeError, match="turn_timeout"):
        async with transaction.atomic(using=alias):
            task = asyncio.create_task(child())
            await entered.wait()
    release.set()
    with pytest.raises(RuntimeError, match="has ended already"):
        await task
    assert committed(server) == []


async def test_transaction_ends_while_a_child_waits_to_leave(server: Server) -> None:
    """A block that waits to be left when its transaction ends raises RuntimeError, too."""
    entered, release, leaving = asyncio.Event(), asyncio.Event(), asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def grandchild() -> None:
        async with transaction.atomic():
            entered.set()
            await release.wait()

    async def child() -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name="lost")
            tasks.append(asyncio.create_task(grandchild()))
            await entered.wait()
            leaving.set()

    async def owner() -> None:
        await transaction.atomic().__aenter__()
        tasks.append(asyncio.create_task(child()))
        await leaving.wait()
        # Behind what the child does up to its wait for the grandchild.
        await asyncio.sleep(0)

    with pytest.warns(ResourceWarning, match="ended inside a transaction"):
        await asyncio.create_task(owner())
        with pytest.raises(RuntimeError, match="has ended already"):
            await tasks[0]
    release.set()
    with pytest.raises(RuntimeError, match="has ended already"):
        await tasks[1]
    assert committed(server) == []


# The end of a task, and cancellation


async def cancelled_then_next(block: Callable[[], Any], cancel_when: Callable[[], bool]) -> None:
    """Cancel *block* when *cancel_when* holds; then commit "kept" on the same task."""

    async def work() -> None:
        with pytest.raises(asyncio.CancelledError):
            await block()
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()
        assert not connection.in_atomic_block
        assert connection.run_on_commit == []
        async with transaction.atomic():
            await Author.objects.acreate(name="kept")

    task = asyncio.create_task(work())
    await until(cancel_when)
    task.cancel()
    await task


async def test_cancel_between_statements(server: Server) -> None:
    """Cancelled between two statements, the transaction is rolled back; the next one works."""

    async def block() -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name="lost")
            await asyncio.Event().wait()

    await cancelled_then_next(block, lambda: running(server, "idle in transaction") == 1)
    assert committed(server) == ["kept"]


async def test_cancel_in_a_statement(server: Server) -> None:
    """Cancelled in a statement, the transaction is rolled back and the statement stopped."""

    async def block() -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name="lost")
            await asleep(600)

    await cancelled_then_next(block, lambda: running(server, "active", "%pg_sleep%") == 1)
    assert committed(server) == ["kept"]
    await until(lambda: running(server, "active", "%pg_sleep%") == 0)


async def test_cancel_in_a_nested_block(server: Server) -> None:
    """Cancelled inside a nested block, the whole transaction is rolled back."""

    async def block() -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name="lost")
            async with transaction.atomic():
                await Author.objects.acreate(name="lost too")
                await asleep(600)

    await cancelled_then_next(block, lambda: running(server, "active", "%pg_sleep%") == 1)
    assert committed(server) == ["kept"]


@pytest.fixture
def slow_commit(server: Server) -> Iterator[None]:
    """Hold the COMMIT of every transaction that inserts an author named "slow"."""
    server.all(
        "CREATE FUNCTION hold_commit() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(600); RETURN NULL; END $$"
    )
    server.all(
        "CREATE CONSTRAINT TRIGGER hold_commit AFTER INSERT ON tests_author"
        " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW WHEN (NEW.name = 'slow')"
        " EXECUTE FUNCTION hold_commit()"
    )
    yield
    server.all("DROP FUNCTION hold_commit CASCADE")


@pytest.mark.usefixtures("slow_commit")
async def test_cancel_at_commit(server: Server) -> None:
    """Cancelled at COMMIT, the state is reset: the next transaction of the task commits."""
    ran: list[str] = []

    async def block() -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name="slow")
            transaction.on_commit(lambda: ran.append("hook"))

    await cancelled_then_next(block, lambda: running(server, "active", "COMMIT%") == 1)
    assert committed(server) == ["kept"]
    assert ran == []
    await until(lambda: running(server, "active", "COMMIT%") == 0)


async def test_cancelled_child_leaves_the_transaction_usable(server: Server) -> None:
    """A child cancelled in its nested block loses its rows; its owner goes on."""
    entered = asyncio.Event()

    async def child() -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name="lost")
            entered.set()
            await asyncio.Event().wait()

    async with transaction.atomic():
        task = asyncio.create_task(child())
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await Author.objects.acreate(name="kept")
    assert committed(server) == ["kept"]


async def test_error_is_not_kept_with_its_task() -> None:
    """A task whose transaction an error broke is freed when it has ended, and the error too."""

    async def collide() -> None:
        async with transaction.atomic():
            await Author.objects.acreate(name="Ada")
            await Author.objects.acreate(name="Ada")

    # The wrapper outlives the task, as one that was used before it was started.
    await Author.objects.acount()
    task = asyncio.create_task(collide())
    await asyncio.wait([task])
    assert isinstance(task.exception(), IntegrityError)
    freed = weakref.ref(task)
    del task

    def is_freed() -> bool:
        gc.collect()
        return freed() is None

    # A cancelled timer keeps its context until it would have been due.
    await until(is_freed)


async def test_broken_after_its_end(server: Server) -> None:
    """Who finds out too late that a block was broken leaves the next transaction as it is."""
    async with transaction.atomic():
        state = connection.state
    state.break_block(DatabaseError("of the block that has ended"))
    async with transaction.atomic():
        await Author.objects.acreate(name="Ada")
    assert committed(server) == ["Ada"]
