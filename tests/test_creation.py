"""Test databases: made and removed while the alias's pool has connections."""

import asyncio
from collections.abc import Callable, Iterator

import pytest
from django.db import connections

from pgbackend import bridged
from tests.models import Author
from tests.support.limits import PATIENCE
from tests.support.server import NAME, Server

TEST_NAME = "pgbackend_tests_created"


@pytest.fixture
def alias(server: Server, add_alias: Callable[..., str]) -> Iterator[str]:
    """An alias whose test database does not exist."""
    yield add_alias(
        {"pool": {"min_size": 2, "max_size": 4}},
        TEST={
            "NAME": TEST_NAME,
            "MIGRATE": False,
            "MIRROR": None,
            "CHARSET": None,
            "COLLATION": None,
        },
    )
    for name in databases(server):
        server.all(f"DROP DATABASE {name} WITH (FORCE)")


def databases(server: Server) -> list[str]:
    """Return the names of the test database and its clones."""
    return [
        name
        for (name,) in server.all(
            "SELECT datname FROM pg_database WHERE starts_with(datname, %s) ORDER BY 1",
            TEST_NAME,
        )
    ]


def connected_to(server: Server, database: str) -> int:
    """Return how many backends of ours serve a database."""
    return int(
        server.one(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s AND datname = %s",
            NAME,
            database,
        )
    )


def create(alias: str) -> None:
    connections[alias].creation.create_test_db(verbosity=0, autoclobber=True)


def clone(alias: str) -> None:
    creation = connections[alias].creation
    assert Author.objects.using(alias).count() == 0
    Author.objects.using(alias).create(name="Ada")
    creation.clone_test_db(suffix="1", verbosity=0, autoclobber=True)


def destroy(alias: str, old_name: str) -> None:
    creation = connections[alias].creation
    creation.destroy_test_db(suffix="1", verbosity=0)
    creation.destroy_test_db(old_name, verbosity=0)


async def test_in_the_bridge(server: Server, alias: str) -> None:
    """Bridged, a test database is made, cloned and removed although the pool is in use."""
    old_name = connections[alias].settings_dict["NAME"]
    # Idle connections to the database that the alias has so far.
    await asyncio.gather(*(Author.objects.using(alias).acount() for _ in range(10)))
    await bridged(create)(alias)
    # Nobody would use the old database's pool again: it was closed.
    async with asyncio.timeout(PATIENCE):
        while connected_to(server, old_name):
            await asyncio.sleep(0.01)
    await bridged(clone)(alias)
    assert databases(server) == [TEST_NAME, f"{TEST_NAME}_1"]
    # And to the one that is to be removed.
    await asyncio.gather(*(Author.objects.using(alias).acount() for _ in range(10)))
    assert await Author.objects.using(alias).acount() == 1
    await bridged(destroy)(alias, old_name)
    assert databases(server) == []
    assert connections[alias].settings_dict["NAME"] == old_name
    assert await Author.objects.using(alias).acount() == 0


async def test_two_aliases_of_one_database(
    server: Server, alias: str, add_alias: Callable[..., str]
) -> None:
    """A test database is removed although another alias of the same has idle connections."""
    other = add_alias({"pool": {"min_size": 2, "max_size": 4}})
    old_name = connections[alias].settings_dict["NAME"]
    await bridged(create)(alias)
    connections[other].settings_dict["NAME"] = TEST_NAME
    for each in (alias, other):
        await asyncio.gather(*(Author.objects.using(each).acount() for _ in range(10)))
    await bridged(connections[alias].creation.destroy_test_db)(old_name, verbosity=0)
    assert databases(server) == []
    connections[other].settings_dict["NAME"] = old_name
    assert await Author.objects.using(other).acount() == 0


def test_without_a_loop(server: Server, alias: str) -> None:
    """Without a loop the same works as with Django's backend."""
    old_name = connections[alias].settings_dict["NAME"]
    assert Author.objects.using(alias).count() == 0
    create(alias)
    clone(alias)
    assert databases(server) == [TEST_NAME, f"{TEST_NAME}_1"]
    destroy(alias, old_name)
    assert databases(server) == []
