"""The worker inside the server: `LifespanApplication(application, listen=True)`."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from asgiref.testing import ApplicationCommunicator
from django.core.handlers.asgi import ASGIHandler

from pgbackend import asgi
from pgbackend.asgi import LifespanApplication
from pgbackend.pubsub import Channel, Notification, anotify
from pgbackend.pubsub.companion import CompanionWorker
from pgbackend.pubsub.hubs import hub_of
from tests.pubsub.site import jobs
from tests.support.limits import PATIENCE
from tests.support.pubsub import effects, until, working
from tests.support.server import Server


@dataclass
class Heard(Channel):
    """A channel that only streams hear."""

    number: int


@pytest.fixture
def unreachable(add_alias: Callable[..., str]) -> str:
    """An alias of a server that is not there."""
    return add_alias(HOST="127.0.0.1", PORT=1)


class Lifespan:
    """A server's start-up and shutdown."""

    def __init__(self, **options: Any) -> None:
        application = LifespanApplication(ASGIHandler(), **options)
        self.server = ApplicationCommunicator(application, {"type": "lifespan", "state": {}})

    async def send(self, event: str) -> Any:
        await self.server.send_input({"type": f"lifespan.{event}"})
        return await self.server.receive_output(timeout=PATIENCE)


async def test_beside_the_requests(server: Server) -> None:
    """From start-up to shutdown notifications are handled, and nothing is left afterwards."""
    lifespan = Lifespan(listen=True)
    assert await lifespan.send("startup") == {"type": "lifespan.startup.complete"}
    await anotify(jobs.Plain, number=1)
    await anotify(jobs.Stored, number=2, do="sleep 0.2")
    await until(lambda: jobs.called == [1, 2])
    assert await lifespan.send("shutdown") == {"type": "lifespan.shutdown.complete"}
    # What was being handled at shutdown came to its end.
    assert await effects() == [1, 2]
    assert not await Notification.objects.aexists()
    others = [task for task in asyncio.all_tasks() if task.get_name().startswith("pubsub-")]
    assert others == []


async def test_at_shutdown() -> None:
    """What takes too long at shutdown is given back."""
    lifespan = Lifespan(listen=["tests.pubsub.site.jobs.Leased"], timeout=0.1)
    await lifespan.send("startup")
    await anotify(jobs.Leased, number=1, do="sleep 60")
    await until(lambda: jobs.running)
    await lifespan.send("shutdown")
    assert [each.state async for each in Notification.objects.all()] == ["ready"]


async def test_wrong_channel() -> None:
    """Start-up fails with the error for a channel that is not there."""
    answer = await Lifespan(listen=["no.such.Channel"]).send("startup")
    assert answer["type"] == "lifespan.startup.failed"
    assert "There is no channel 'no.such.Channel'" in answer["message"]


async def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the application start-up fails with what to do."""
    monkeypatch.setattr(asgi, "make_listener", None)
    answer = await Lifespan(listen=True).send("startup")
    assert "'pgbackend.pubsub' into INSTALLED_APPS" in answer["message"]


async def test_cancelled_start(unreachable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start-up that is cancelled leaves no worker behind."""
    monkeypatch.setattr(jobs.Plain, "using", unreachable)
    companion = CompanionWorker([jobs.Plain])
    task = asyncio.create_task(companion.start())
    await until(lambda: companion.worker.parts)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    left = [task for task in asyncio.all_tasks() if task.get_name().startswith("pubsub-")]
    assert left == []


async def test_one_hub() -> None:
    """The worker and the streams of a loop have one listening connection."""
    async with working(jobs.Stored) as worker:
        (part,) = worker.parts
        async with Heard.stream() as stream:
            assert hub_of() is part.hub
            await anotify(Heard, number=1)
            assert (await anext(stream)).number == 1
        await anotify(jobs.Stored, number=2)
        await until(lambda: jobs.called == [2])
    assert part.hub.state == "stopped"
