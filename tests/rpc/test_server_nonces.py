"""The nonce of a message is noted with the first statement of its transaction, and stays noted."""

from __future__ import annotations

import asyncio
from contextlib import nullcontext, suppress
from typing import Any

import pytest
from django.db import connection
from django.db.models import F, IntegerField
from django.db.models.functions import Cast

from pgbackend import bridged
from pgbackend.rpc.protocol.answers import Answer
from tests.rpc.site.models import Dish, Order, Station
from tests.support.proxy import Proxy
from tests.support.rpc_server import answer_of, exposed, op, sealed, tree, where
from tests.support.server import Server
from tests.support.wrapper import use_wrapper

NOTED = "SELECT count(*) FROM pgbackend_rpc_server_seennonce"


def codes(answer: Answer) -> list[str | None] | str:
    """Return the code of each tree, or that of the whole message."""
    if answer.error is not None:
        return answer.error.code
    return [each.error.code if each.error else None for each in answer.outcomes]


async def ask(wire: str, *, looked_at: bool = False, **options: Any) -> list[str | None] | str:
    """Return what comes of a message on the event loop.

    Where somebody looks at the statements, each goes by itself, by a cursor of Django's.
    """

    @bridged
    def answered() -> Answer:
        with connection.execute_wrapper(pass_on) if looked_at else nullcontext():
            return answer_of(wire, **options)

    return codes(await answered())


def pass_on(execute: Any, *statement: Any) -> Any:
    return execute(*statement)


looked_at = pytest.mark.parametrize("looked_at", [False, True], ids=["several", "each"])

FIRST = {
    "a read": [tree("Dish")],
    "two alike": [tree("Dish", where(pk=1), end=op("get"))] * 2,
    "a write": [tree("Dish", where(pk=1), end=op("update", name="x"))],
    "a method": [tree("Dish", end=op("call", "total_price"))],
    "no statement": [tree("", end=op("describe")), tree("Dish")],
    "refused": [tree("Hidden"), tree("Dish")],
    "a wrong path": [tree("Dish", where(recipe="x"))],
    "of nothing": [tree("Dish", op("none"), end=op("get"))],
}


@looked_at
@pytest.mark.parametrize("first", FIRST)
async def test_replayed(first: str, looked_at: bool) -> None:
    """What comes twice is refused the second time, whatever it asks and whatever came of it."""
    trees = FIRST[first]
    for options in ({}, {"atomic": True}, {"dry": True}):
        wire = sealed(*trees, **options)
        given = await ask(wire, looked_at=looked_at)
        assert given != "Replayed"
        assert await ask(wire, looked_at=looked_at) == "Replayed"
        # Which worker took it is not known then.
        assert await ask(wire, looked_at=looked_at, redelivered=True) == given
        assert await ask(wire, looked_at=looked_at) == "Replayed"


@looked_at
async def test_noted_before_anything_is_run(looked_at: bool, server: Any) -> None:
    """The nonce is committed when the read begins, whose time is limited all the same."""
    seen: list[Any] = []

    def rows(principal: Any, queryset: Any) -> Any:
        (noted,) = server.conn.execute(NOTED).fetchone()
        with connection.cursor() as cursor:
            cursor.execute("SHOW statement_timeout")
            (timeout,) = cursor.fetchone()
            cursor.execute("SELECT pg_current_xact_id_if_assigned()")
            (xact,) = cursor.fetchone()
        seen.append((noted, timeout != "0", connection.in_atomic_block, xact))
        return queryset

    with exposed(Dish, rows=rows):
        wire = sealed(tree("Dish", end=op("count")))
        assert await ask(wire, looked_at=looked_at) == [None]
    # The transaction of the read has written nothing.
    assert seen
    assert set(seen) == {(1, True, True, None)}
    assert not connection.in_atomic_block


@looked_at
async def test_noted_although_the_read_fails(looked_at: bool) -> None:
    """A read that the database ends leaves the nonce noted, and harms no further message."""

    def rows(principal: Any, queryset: Any) -> Any:
        return queryset.alias(n=Cast(F("recipe"), IntegerField())).filter(n__gt=0)

    @bridged
    def make() -> None:
        Dish.objects.create(name="soup", recipe="no number")

    await make()
    wire = sealed(tree("Dish"))
    with exposed(Dish, rows=rows):
        assert await ask(wire, looked_at=looked_at) == ["DataError"]
        assert await ask(wire, looked_at=looked_at) == "Replayed"
    assert await ask(sealed(tree("Dish"))) == [None]


async def test_at_once() -> None:
    """Of copies that come at the same time one is taken."""
    for _ in range(5):
        wire = sealed(tree("Dish", end=op("count")))
        given = await asyncio.gather(*(ask(wire) for _ in range(8)))
        assert sorted(map(str, given)) == sorted(["[None]", *["Replayed"] * 7])


# What is asked, and the messages that it takes: the nonce goes with the first statement, unless a
# function of the project is called before that, and the COMMIT with a last read.
MESSAGES = {
    "a read": ([tree("Station", where(name="x"), end=op("first"))], 1),
    "a count": ([tree("Station", end=op("count"))], 1),
    "two reads": ([tree("Station", end=op("count"))] * 2, 2),
    "of nothing": ([tree("Station", op("none"))], 2),
    "a prefetch": ([tree("Station", op("prefetch_related", "dishes"))], 3),
    "a row predicate": ([tree("Order", end=op("count"))], 2),
}


@pytest.mark.parametrize("asked", MESSAGES)
async def test_messages(server: Server, asked: str) -> None:
    """A message of one read is one exchange with the database."""
    trees, most = MESSAGES[asked]
    async with Proxy(str(server.conn.info.host), server.conn.info.port) as proxy:
        use_wrapper(HOST="127.0.0.1", PORT=proxy.port)
        await bridged(Station.objects.get_or_create)(name="x")
        await ask(sealed(*trees))
        before = proxy.messages
        assert await ask(sealed(*trees)) == [None] * len(trees)
        assert proxy.messages - before <= most
        with connection.execute_wrapper(pass_on):
            assert not connection.in_atomic_block


async def test_a_replay_is_not_run(server: Server) -> None:
    """A message that comes twice is refused before its read waits for a lock."""
    wire = sealed(tree("Station", end=op("count")))
    assert await ask(wire) == [None]
    with server.conn.transaction():
        server.conn.execute("LOCK TABLE rpc_site_station IN ACCESS EXCLUSIVE MODE")
        assert await ask(wire) == "Replayed"


async def test_a_replay_that_the_project_hides(server: Server) -> None:
    """A row predicate that catches all exceptions lets no replayed message through."""

    def rows(principal: Any, queryset: Any) -> Any:
        raise KeyError

    def permission(principal: Any, operation: str, model: Any) -> bool:
        with suppress(Exception):
            return bool(Station.objects.count() < 0) or True
        return True

    for functions in ({"permission": permission}, {"rows": rows}):
        with exposed(Dish, **functions):
            for trees in ([tree("Dish")], [tree("Dish", where(pk=1), end=op("get"))] * 2):
                wire = sealed(*trees)
                assert await ask(wire) != "Replayed"
                assert await ask(wire) == "Replayed"


async def test_a_write_after_a_read() -> None:
    """A message that reads first and writes then is run as one that does not."""
    create = tree("Dish", end=op("create", name="stew", station=None))
    wire = sealed(tree("Dish", end=op("count")), create, tree("Dish", end=op("count")))
    answer = await bridged(answer_of)(wire)
    assert codes(answer) == [None, None, None]
    assert [answer.outcomes[each].value for each in (0, 2)] == [0, 1]
    assert await ask(wire) == "Replayed"
    answer = await bridged(answer_of)(wire, redelivered=True)
    assert [answer.outcomes[each].value for each in (0, 2)] == [1, 1]


async def test_no_table_of_nonces() -> None:
    """Where a nonce cannot be noted nothing is run."""
    asked: list[Any] = []

    def rows(principal: Any, queryset: Any) -> Any:
        asked.append(principal)
        return queryset

    @bridged
    def rename(old: str, new: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE {old} RENAME TO {new}")

    table = "pgbackend_rpc_server_seennonce"
    await rename(table, "elsewhere")
    try:
        with exposed(Order, rows=rows):
            given = await ask(sealed(tree("Order"), tree("Order")))
    finally:
        await rename("elsewhere", table)
    # That of the whole message.
    assert isinstance(given, str)
    assert not asked
