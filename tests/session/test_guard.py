"""Cursors' statements are inspected, and their answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from django.db import (
    ProgrammingError,
    connection,
    connections,
    transaction,
)
from psycopg import sql

from pgbackend import bridged
from pgbackend.wrapper.dispatch import in_bridge
from tests.models import Author
from tests.support.server import Server
from tests.support.session import PROBES, SETTING, backend, named, run
from tests.support.wrapper import AddAlias

FORMS: dict[str, Callable[[str], Any]] = {
    "bytes": lambda change: change.encode(),
    "psycopg.sql": lambda change: sql.SQL("{}").format(sql.SQL(change)),
    "comment": lambda change: f"/* it's */ -- ;\n{change}",
    "later": lambda change: f"SELECT 1; {change}",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", PROBES)
async def test_other_forms(form: str, name: str, add_alias: AddAlias) -> None:
    """Whatever a statement is given as, it is refused, and kept in a request."""
    alias = add_alias({"pool": {"max_size": 1}})
    change, ask, fresh = PROBES[name]

    async def view() -> Any:
        run(alias, FORMS[form](change))
        run(alias, "SELECT 1")
        return run(alias, ask)

    with pytest.raises(ProgrammingError, match="lives in the session"):
        await bridged(run)(alias, FORMS[form](change))
    assert await bridged(run)(alias, ask) == fresh
    assert await in_bridge(view) != fresh
    assert await bridged(run)(alias, ask) == fresh


PARAMETERS: dict[str, Any] = {
    "by position": ("SELECT set_config(%s, %s, %s)", ["app.one", "a", False]),
    "by name": ("SELECT set_config(%(n)s, 'a', %(l)s)", {"n": "app.one", "l": "off"}),
    "cast": ("SELECT set_config('app.one', 'a', %s::bool)", ["f"]),
    "in a block": ("DO %s", ["BEGIN SET app.one = 'a'; END"]),
    "percent signs": ("SELECT '%%s', set_config('app.one', %s, %s), '%%'", ["a", False]),
}


@pytest.mark.parametrize("binding", [False, True])
@pytest.mark.parametrize("name", PARAMETERS)
async def test_parameters(name: str, binding: bool, add_alias: AddAlias) -> None:
    """Whether set_config() outlives its transaction may stand in a parameter."""
    alias = add_alias({"pool": {"max_size": 1}, "server_side_binding": binding})
    change, params = PARAMETERS[name]
    if binding and name == "in a block":
        pytest.skip("not a parameter for the server")

    async def view() -> Any:
        run(alias, change, params)
        run(alias, "SELECT 1")
        return run(alias, SETTING)

    with pytest.raises(ProgrammingError, match="lives in the session"):
        await bridged(run)(alias, change, params)
    assert await in_bridge(view) == "a"
    assert await bridged(run)(alias, SETTING) == ""


@bridged
def test_parameters_that_are_local() -> None:
    """set_config() for the transaction is not refused, wherever that is said."""
    for local in (True, "true", "on"):
        run("default", "SELECT set_config('app.one', 'a', %s)", [local])
    with connection.cursor() as cursor:
        cursor.executemany("SELECT set_config('app.one', %s, %s)", [["a", True], ["b", True]])
        with pytest.raises(ProgrammingError, match="lives in the session"):
            cursor.executemany("SELECT set_config('app.one', %s, %s)", [["a", True], ["b", False]])


CALLS: dict[str, Callable[[Any], Any]] = {
    "execute": lambda cursor: cursor.execute("SET app.one = 'a'"),
    "executemany": lambda cursor: cursor.executemany("SET app.one = %s", iter([["a"], ["b"]])),
    "callproc": lambda cursor: cursor.callproc("set_config", ["app.one", "a", False]),
    "stream": lambda cursor: list(cursor.stream("SELECT set_config('app.one', 'a', false)")),
    "copy": lambda cursor: list(
        cursor.copy("COPY (SELECT set_config('app.one', 'a', false)) TO STDOUT").__enter__()
    ),
    "psycopg's cursor": lambda cursor: cursor.cursor.execute("SET app.one = 'a'"),
    "psycopg's connection": lambda cursor: cursor.db.connection.execute("SET app.one = 'a'"),
    "its cursor": lambda cursor: cursor.db.connection.cursor().execute(b"SET app.one = 'a'"),
    "its named cursor": lambda cursor: named(cursor.db.connection),
}


@pytest.mark.parametrize("name", CALLS)
async def test_other_ways(name: str, add_alias: AddAlias) -> None:
    """By whichever method it goes to the server, psycopg's own included, it is refused."""
    alias = add_alias({"pool": {"max_size": 1}})

    @bridged
    def call() -> None:
        with connections[alias].cursor() as cursor:
            CALLS[name](cursor)

    with pytest.raises((ProgrammingError, psycopg.ProgrammingError), match="lives in the session"):
        await call()
    assert await bridged(run)(alias, SETTING) == ""


class Hidden:
    """SQL that goes to the server by way of a parameter."""

    def __init__(self, text: str) -> None:
        self.text = text


class HiddenDumper(psycopg.adapt.Dumper):
    def dump(self, obj: Hidden) -> bytes:
        return obj.text.encode()

    quote = dump


async def test_what_only_the_answer_tells(add_alias: AddAlias) -> None:
    """What the text does not tell, the server's answer does: kept in a request, or an error."""
    alias = add_alias({"pool": {"max_size": 1}})

    def hide(text: str) -> None:
        with connections[alias].cursor() as cursor:
            cursor.adapters.register_dumper(Hidden, HiddenDumper)
            cursor.execute("SELECT 1; %s", [Hidden(text)])

    async def view() -> Any:
        hide("SET app.one = 'a'")
        return run(alias, SETTING)

    with pytest.raises(ProgrammingError, match="It has run, since its text did not tell"):
        await bridged(hide)("SET app.one = 'a'")
    assert await bridged(run)(alias, SETTING) == ""
    assert await in_bridge(view) == "a"
    assert await bridged(run)(alias, SETTING) == ""
    with pytest.raises(ProgrammingError, match=r"at the end of the transaction. It"):
        async with transaction.atomic(alias):
            await bridged(hide)("LISTEN orders")
    await bridged(hide)("SELECT 'SET'")
    await bridged(run)(alias, "SET LOCAL app.one = 'a'; SET TRANSACTION READ ONLY")


@pytest.mark.parametrize("name", PROBES)
async def test_nothing_passes_on_from_psycopgs_own_cursors(name: str, add_alias: AddAlias) -> None:
    """Nor is what was changed past all cursors that we know of."""
    alias = add_alias({"pool": {"max_size": 1}})
    change, ask, fresh = PROBES[name]

    @bridged
    def change_it() -> None:
        with transaction.atomic(alias):
            Author.objects.using(alias).exists()
            psycopg.ClientCursor(connections[alias].connection).execute(change)

    before = await bridged(backend)(alias)
    await change_it()
    assert await bridged(run)(alias, ask) == fresh
    assert await bridged(backend)(alias) == before


@pytest.mark.parametrize("name", PROBES)
async def test_a_session_that_nothing_keeps(name: str, server: Server) -> None:
    """Outside a transaction, a pin and a request such a statement is refused before it is sent."""
    change, ask, fresh = PROBES[name]
    if name == "role":
        change = "SET ROLE postgres"
    with pytest.raises(ProgrammingError, match=r"pinned\('default'\)"):
        await bridged(run)("default", change)
    assert await bridged(run)("default", ask) == fresh
