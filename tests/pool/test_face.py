"""The DB-API face: psycopg's own `Connection`, waiting through the bridge."""

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from django.db import transaction
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from psycopg.adapt import Loader
from psycopg.rows import dict_row
from psycopg.types import TypeInfo
from psycopg.types.enum import EnumInfo

from pgbackend.base import DatabaseWrapper
from pgbackend.bridge.current import BridgeError
from pgbackend.bridge.greenlets import await_bridged, run_bridged
from tests.support.face import Face, on_face, running
from tests.support.limits import PATIENCE
from tests.support.server import NAME, Server
from tests.support.wrapper import make_wrapper, run, until, use_wrapper


class Ticker:
    """Counts how often the loop comes round, once in 10 ms at most, inside the block."""

    ticks = 0

    async def __aenter__(self) -> "Ticker":
        self.task = asyncio.create_task(self.tick())
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])

    async def tick(self) -> None:
        while True:
            await asyncio.sleep(0.01)
            self.ticks += 1


# psycopg's own


async def test_face_is_a_psycopg_connection(wrapper: DatabaseWrapper) -> None:
    """Third-party code that asks for a psycopg Connection and Cursor finds them."""

    def check(face: Face) -> None:
        assert isinstance(face, psycopg.Connection)
        assert isinstance(face.cursor(), psycopg.Cursor)
        assert isinstance(wrapper.connection, psycopg.Connection)
        assert face.info.backend_pid == face.execute("SELECT pg_backend_pid()").fetchone()[0]
        assert not face.closed
        assert face.autocommit

    assert is_psycopg3
    await on_face(wrapper, check)


async def test_client_cursor(wrapper: DatabaseWrapper) -> None:
    """Django's cursors on the face bind in the client, as mogrify() shows."""

    def check(face: Face) -> None:
        cursor = face.cursor()
        assert isinstance(cursor, psycopg.ClientCursor)
        assert cursor.mogrify("SELECT %s", ["o'clock"]) == "SELECT 'o''clock'"
        assert cursor.execute("SELECT %s", ["o'clock"]).fetchall() == [("o'clock",)]

    await on_face(wrapper, check)


async def test_server_side_binding() -> None:
    """With ``server_side_binding`` parameters go to the server apart from the statement."""
    wrapper = make_wrapper(options={"server_side_binding": True})

    def check(face: Face) -> Any:
        cursor = face.cursor()
        assert not isinstance(cursor, psycopg.ClientCursor)
        cursor.execute("SELECT %s::int + 1, query FROM pg_stat_activity WHERE pid = %s", [
            1, face.info.backend_pid,
        ])  # fmt: skip
        return cursor.fetchone()

    result, query = await on_face(wrapper, check)
    assert result == 2
    assert "$1::int" in query


async def test_server_cursor(wrapper: DatabaseWrapper) -> None:
    """A named cursor fetches in blocks, scrolls, and is gone from the server when closed."""

    def check(face: Face) -> None:
        with face.transaction(), face.cursor("numbers", scrollable=True) as cursor:
            cursor.itersize = 10
            cursor.execute("SELECT generate_series(1, %s)", [95])
            assert [n for (n,) in cursor] == list(range(1, 96))
            cursor.scroll(0, mode="absolute")
            assert cursor.fetchmany(2) == [(1,), (2,)]
            count = face.execute("SELECT count(*) FROM pg_cursors WHERE name = 'numbers'")
            assert count.fetchone() == (1,)
        assert face.execute("SELECT count(*) FROM pg_cursors").fetchone() == (0,)

    await on_face(wrapper, check)


async def test_copy_in_and_out(wrapper: DatabaseWrapper) -> None:
    """COPY FROM STDIN and COPY TO STDOUT work row by row and block by block."""
    rows = [(f"author {n}",) for n in range(5000)]

    def check(face: Face) -> None:
        cursor = face.cursor()
        with cursor.copy("COPY tests_author (name) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)
        assert cursor.rowcount == len(rows)
        with cursor.copy("COPY (SELECT name FROM tests_author ORDER BY id) TO STDOUT") as copy:
            copy.set_types(["text"])
            assert list(copy.rows()) == rows
        with cursor.copy("COPY (SELECT 1, 2) TO STDOUT") as copy:
            assert b"".join(copy) == b"1\t2\n"

    await on_face(wrapper, check)


async def test_copy_lets_the_loop_go_on(wrapper: DatabaseWrapper) -> None:
    """Other tasks run while COPY waits for the server."""

    def check(face: Face) -> bytes:
        with face.cursor().copy("COPY (SELECT FROM pg_sleep(0.3)) TO STDOUT") as copy:
            return b"".join(copy)

    async with Ticker() as ticker:
        assert await on_face(wrapper, check) == b"\n"
    assert ticker.ticks >= 10


async def test_failed_copy_leaves_the_connection_usable(wrapper: DatabaseWrapper) -> None:
    """An exception inside a COPY block aborts the COPY, and the connection goes on."""

    def fail(face: Face) -> None:
        with face.cursor().copy("COPY tests_author (name) FROM STDIN") as copy:
            copy.write_row(["Ada"])
            raise LookupError

    def check(face: Face) -> None:
        with pytest.raises(LookupError):
            fail(face)
        assert face.execute("SELECT count(*) FROM tests_author").fetchone() == (0,)

    await on_face(wrapper, check)


async def test_pipeline(wrapper: DatabaseWrapper) -> None:
    """In pipeline mode statements are queued, and their results arrive in order."""

    def check(face: Face) -> None:
        with face.pipeline() as pipeline:
            cursors = [face.cursor() for _ in range(3)]
            for n, cursor in enumerate(cursors):
                psycopg.Cursor.execute(cursor, "SELECT %s::int", [n])
            pipeline.sync()
            assert [cursor.fetchone() for cursor in cursors] == [(0,), (1,), (2,)]
        assert face.execute("SELECT 4").fetchone() == (4,)

    # A client-side cursor cannot be used in a pipeline: psycopg documents why.
    with_server_binding = make_wrapper(options={"server_side_binding": True})
    await on_face(with_server_binding, check)


async def test_executemany_returning(wrapper: DatabaseWrapper) -> None:
    """executemany(returning=True) gives one result set for each set of parameters."""

    def check(face: Face) -> list[Any]:
        cursor = face.cursor()
        cursor.executemany(
            "INSERT INTO tests_author (name) VALUES (%s) RETURNING name",
            [["Ada"], ["Grace"], ["Jean"]],
            returning=True,
        )
        names = [cursor.fetchone()]
        while cursor.nextset():
            names.append(cursor.fetchone())
        return names

    assert await on_face(wrapper, check) == [("Ada",), ("Grace",), ("Jean",)]


async def test_transaction_of_psycopg(wrapper: DatabaseWrapper) -> None:
    """psycopg's own transaction() commits and rolls back, nested too."""

    def check(face: Face) -> Any:
        with face.transaction():
            face.execute("INSERT INTO tests_author (name) VALUES ('kept')")
            with face.transaction(force_rollback=True):
                face.execute("INSERT INTO tests_author (name) VALUES ('undone')")
        return face.execute("SELECT array_agg(name) FROM tests_author").fetchone()

    assert await on_face(wrapper, check) == (["kept"],)


async def test_notifies(server: Server, wrapper: DatabaseWrapper) -> None:
    """notifies() yields what others NOTIFY while it waits, without stopping the loop."""

    async def notify() -> None:
        listening = (
            "SELECT 1 FROM pg_stat_activity"
            " WHERE application_name = %s AND query = 'LISTEN orders' AND state = 'idle'"
        )
        await until(lambda: server.all(listening, NAME))
        server.all("NOTIFY orders, 'ready'")

    def listen(face: Face) -> list[Any]:
        face.execute("LISTEN orders")
        try:
            return list(face.notifies(timeout=10, stop_after=1))
        finally:
            face.execute("UNLISTEN *")

    (notification,), _ = await asyncio.gather(on_face(wrapper, listen), notify())
    assert (notification.channel, notification.payload) == ("orders", "ready")


async def test_notify_handler(server: Server, wrapper: DatabaseWrapper) -> None:
    """A notify handler is called with what arrived when the next statement runs."""

    def listen(face: Face) -> list[str]:
        payloads: list[str] = []
        face.add_notify_handler(lambda notify: payloads.append(notify.payload))
        face.execute("LISTEN orders")
        server.all("NOTIFY orders, 'ready'")
        face.execute("UNLISTEN *")
        return payloads

    assert await on_face(wrapper, listen) == ["ready"]


async def test_wait_has_a_timeout(wrapper: DatabaseWrapper) -> None:
    """A wait with a timeout ends in time, the loop going on meanwhile, and can be repeated."""

    def listen(face: Face) -> list[Any]:
        assert list(face.notifies(timeout=0.2)) == []
        return face.execute("SELECT 1").fetchall()

    async with Ticker() as ticker:
        assert await asyncio.wait_for(on_face(wrapper, listen), PATIENCE) == [(1,)]
    assert ticker.ticks >= 5


async def test_limits_end_in_any_order() -> None:
    """What limits one task's statements does not outlast it where another's began meanwhile."""
    wrapper = use_wrapper(options={"pool": {"max_size": 1}, "cancel_timeout": 0.1})

    def work() -> None:
        with wrapper.cursor() as cursor:
            face = cursor.connection
            first, second = face.limited(), face.limited()
            first.__enter__()
            second.__enter__()
            first.__exit__(None, None, None)
            second.__exit__(None, None, None)
            cursor.execute("SELECT pg_sleep(0.3)")

    await run_bridged(work)


async def test_type_info(server: Server, wrapper: DatabaseWrapper) -> None:
    """TypeInfo.fetch() takes the face, and what it finds can be registered on it."""
    server.all("CREATE TYPE tests_state AS ENUM ('placed', 'ready')")

    def check(face: Face) -> None:
        info = EnumInfo.fetch(face, "tests_state")
        assert info is not None
        assert list(info.labels) == ["placed", "ready"]
        info.register(face)
        assert TypeInfo.fetch(face, "no_such_type") is None
        assert face.adapters.types["tests_state"].oid == info.oid

    try:
        await on_face(wrapper, check)
    finally:
        server.all("DROP TYPE tests_state")


async def test_cancel_safe(server: Server, wrapper: DatabaseWrapper) -> None:
    """cancel_safe() from another task ends the query, and lets the loop go on meanwhile."""
    query = "SELECT pg_sleep(600)"
    faces: list[Face] = []

    def sleep(face: Face) -> Any:
        faces.append(face)
        with pytest.raises(psycopg.errors.QueryCanceled):
            face.execute(query)
        return face.execute("SELECT 1").fetchone()

    task = asyncio.create_task(on_face(wrapper, sleep))
    await running(server, query)
    came_round: list[bool] = []
    asyncio.get_running_loop().call_soon(came_round.append, True)

    def cancel() -> bool:
        faces[0].cancel_safe(timeout=PATIENCE)
        return bool(came_round)

    assert await run_bridged(cancel)
    assert await asyncio.wait_for(task, PATIENCE) == (1,)


# Waiting


async def test_query_does_not_stop_the_loop(wrapper: DatabaseWrapper) -> None:
    """While a query sleeps in the server, a ticking task on the same loop keeps ticking."""
    async with Ticker() as ticker:
        await run(wrapper, "SELECT pg_sleep(0.5)")
    assert ticker.ticks >= 20


async def test_tasks_in_one_transaction_take_turns_without_stopping_the_loop() -> None:
    """Statements of two tasks in one transaction run one by one on it, and the loop goes on."""
    use_wrapper(options={"pool": {"max_size": 1, "timeout": 5.0}})

    def statement() -> int:
        with transaction.get_connection().cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid() FROM pg_sleep(0.2)")
            return int(cursor.fetchone()[0])

    def both() -> list[int]:
        with transaction.atomic():
            return await_bridged(_gather(statement, statement))

    async with Ticker() as ticker:
        pids = await asyncio.wait_for(run_bridged(both), PATIENCE)
    assert pids[0] == pids[1]
    assert ticker.ticks >= 15


async def _gather(*functions: Callable[[], Any]) -> list[Any]:
    return await asyncio.gather(*(run_bridged(function) for function in functions))


async def test_lock_between_tasks(wrapper: DatabaseWrapper) -> None:
    """Two tasks on one psycopg connection wait for each other, not for a blocked loop."""

    def both(face: Face) -> list[Any]:
        def sleep() -> Any:
            return face.execute("SELECT pg_backend_pid() FROM pg_sleep(0.2)").fetchone()

        return await_bridged(_gather(sleep, sleep))

    async with Ticker() as ticker:
        first, second = await asyncio.wait_for(on_face(wrapper, both), PATIENCE)
    assert first == second
    assert ticker.ticks >= 15


async def test_face_outside_the_bridge(wrapper: DatabaseWrapper) -> None:
    """A statement on the face outside the bridge is a BridgeError that names the fix."""
    faces: list[Face] = []
    release = asyncio.Event()

    def hold(face: Face) -> Any:
        faces.append(face)
        await_bridged(release.wait())
        return face.execute("SELECT 1").fetchone()

    task = asyncio.create_task(on_face(wrapper, hold))
    await until(lambda: faces)
    with pytest.raises(BridgeError, match=r"pgbackend\.bridged"):
        faces[0].execute("SELECT 1")
    release.set()
    assert await task == (1,)


# From one borrower to the next


class Shouting(Loader):
    """Loads a text in capitals."""

    def load(self, data: Any) -> str:
        return bytes(data).decode().upper()


def _register_type(face: Face) -> None:
    TypeInfo("tests_registered", 999_999, 999_998).register(face)


# Name: a borrower's change, and what to look at.
CHANGES: dict[str, tuple[Callable[[Face], Any], Callable[[Face], Any]]] = {
    "row_factory": (
        lambda face: setattr(face, "row_factory", dict_row),
        lambda face: face.execute("SELECT 1 AS n").fetchone(),
    ),
    "cursor_factory": (
        lambda face: setattr(face, "cursor_factory", psycopg.RawCursor),
        lambda face: type(face.cursor()),
    ),
    "server_cursor_factory": (
        lambda face: setattr(face, "server_cursor_factory", psycopg.RawServerCursor),
        lambda face: face.server_cursor_factory,
    ),
    "isolation_level": (
        lambda face: setattr(face, "isolation_level", psycopg.IsolationLevel.SERIALIZABLE),
        lambda face: face.isolation_level,
    ),
    "read_only": (
        lambda face: setattr(face, "read_only", True),
        lambda face: face.read_only,
    ),
    "deferrable": (
        lambda face: setattr(face, "deferrable", True),
        lambda face: face.deferrable,
    ),
    "autocommit": (
        lambda face: setattr(face, "autocommit", False),
        lambda face: face.autocommit,
    ),
    "prepare_threshold": (
        lambda face: setattr(face, "prepare_threshold", 1),
        lambda face: face.prepare_threshold,
    ),
    "prepared_max": (
        lambda face: setattr(face, "prepared_max", 7),
        lambda face: face.prepared_max,
    ),
    "loader": (
        lambda face: face.adapters.register_loader("text", Shouting),
        lambda face: face.execute("SELECT 'a'::text").fetchone(),
    ),
    "type": (
        _register_type,
        lambda face: face.adapters.types.get("tests_registered"),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_changes_end_with_their_borrower(name: str, wrapper: DatabaseWrapper) -> None:
    """What a borrower changes on the connection, the next borrower does not see."""
    change, look = CHANGES[name]
    before = await on_face(wrapper, look)

    def borrow(face: Face) -> tuple[int, Any]:
        change(face)
        return face.info.backend_pid, look(face)

    pid, changed = await on_face(wrapper, borrow)
    assert changed != before, "the change has no effect that could be seen"
    after = await on_face(wrapper, lambda face: (face.info.backend_pid, look(face)))
    assert after == (pid, before)


async def test_read_only_is_not_in_force_for_the_next(wrapper: DatabaseWrapper) -> None:
    """A transaction that a borrower made read-only leaves the next one able to write."""

    def read_only(face: Face) -> None:
        face.read_only = True
        with face.transaction():
            assert face.execute("SHOW transaction_read_only").fetchone() == ("on",)

    def write(face: Face) -> Any:
        with face.transaction():
            return face.execute("SHOW transaction_read_only").fetchone()

    await on_face(wrapper, read_only)
    assert await on_face(wrapper, write) == ("off",)


async def test_notice_handler_ends_with_its_borrower(wrapper: DatabaseWrapper) -> None:
    """A notice handler that a borrower added hears nothing of the next one's notices."""
    heard: list[str | None] = []
    notice = "DO $$ BEGIN RAISE NOTICE 'hear'; END $$"

    def add(face: Face) -> None:
        face.add_notice_handler(lambda diagnostic: heard.append(diagnostic.message_primary))
        face.execute(notice)

    await on_face(wrapper, add)
    assert heard == ["hear"]
    await run(wrapper, notice)
    assert heard == ["hear"]


async def test_notify_handler_ends_with_its_borrower(wrapper: DatabaseWrapper) -> None:
    """A notify handler that a borrower added hears nothing of the next one's notifications."""
    heard: list[str] = []

    def hear(face: Face) -> None:
        face.execute("LISTEN orders")
        face.execute("NOTIFY orders, 'x'")
        face.execute("UNLISTEN *")

    def add(face: Face) -> None:
        face.add_notify_handler(lambda notify: heard.append(notify.payload))
        hear(face)

    await on_face(wrapper, add)
    assert heard == ["x"]
    await on_face(wrapper, hear)
    assert heard == ["x"]


async def test_loader_stays_with_one_connection() -> None:
    """A loader registered on one connection affects no other, and not psycopg itself."""
    wrapper = make_wrapper(options={"pool": {"max_size": 2}})

    def register(face: Face) -> Any:
        face.adapters.register_loader("text", Shouting)
        other = await_bridged(asyncio.create_task(run(wrapper, "SELECT 'a'::text")))
        return face.execute("SELECT 'a'::text").fetchone(), other

    assert await on_face(wrapper, register) == (("A",), "a")
    assert psycopg.adapters.get_loader(25, psycopg.pq.Format.TEXT) is not Shouting
