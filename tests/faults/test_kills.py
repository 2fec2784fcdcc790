"""Backends that are terminated, and restarts, under load: row 41, and the short form of `kills`."""

import asyncio
from collections.abc import Iterator

import pytest

from tests.faults.fix_servers import folder_for_servers
from tests.faults.kills import Kills
from tests.faults.own_server import OwnServer
from tests.faults.report import loads

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def own() -> Iterator[OwnServer]:
    """A server that the tests stop and start."""
    with folder_for_servers() as folder:
        server = OwnServer(folder / "own")
        yield server
        server.stop()


def test_41_kills_and_restarts_under_load(
    runner: asyncio.Runner, own: OwnServer, request: pytest.FixtureRequest
) -> None:
    """No task hangs, no acknowledged row is lost, and the pool lends all its places at the end."""
    report = runner.run(Kills(own, 30, 2, request.node.callspec.params["runner"]).run())
    loads.append(str(report))
    assert report.broken == []
    assert report.kills >= 30
    assert report.restarts == 2
    assert report.errors.total() > 0
    assert report.rows["acknowledged"] > 0
