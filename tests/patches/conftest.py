"""Loops, and transactions that wait as they commit."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from tests.support.gate import GATE
from tests.support.loops import LOOPS
from tests.support.server import Server


@pytest.fixture
def gate(server: Server) -> Iterator[Callable[[], None]]:
    """A lock that statements of `WAITS` wait for until this function is called."""
    server.all("SELECT pg_advisory_lock(%s)", GATE)
    yield lambda: server.all("SELECT pg_advisory_unlock_all()")
    server.all("SELECT pg_advisory_unlock_all()")


@pytest.fixture
def slow_commit(server: Server, gate: Callable[[], None]) -> Iterator[Callable[[], None]]:
    """Each COMMIT of a transaction that wrote an author waits at the `gate`, which this opens."""
    server.all(
        f"CREATE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN PERFORM pg_advisory_xact_lock({GATE}); RETURN NULL; END $$"
    )
    server.all(
        "CREATE CONSTRAINT TRIGGER gate AFTER INSERT ON tests_author DEFERRABLE"
        " INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait_at_gate()"
    )
    yield gate
    gate()
    server.all("DROP TRIGGER gate ON tests_author")
    server.all("DROP FUNCTION wait_at_gate")


@pytest.fixture(params=["asyncio", pytest.param("uvloop", marks=pytest.mark.load)])
def run(request: pytest.FixtureRequest) -> Iterator[Callable[[Awaitable[Any]], Any]]:
    """A function that runs a coroutine on a loop of each kind."""
    with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
        yield runner.run  # type: ignore[misc]  # any coroutine
