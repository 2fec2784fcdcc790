"""Messages that wait for changes, as the service takes them: what is refused, and what is left."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from django.core.asgi import get_asgi_application
from django.db import connections
from django.test import override_settings

from pgbackend import bridged
from pgbackend.rpc.protocol.answers import Answer, open_answer
from pgbackend.rpc.server import changes, watching
from pgbackend.rpc.server.running import handle
from pgbackend.rpc.server.settings import service
from tests.rpc.site.models import Dish
from tests.support.limits import AT_ONCE
from tests.support.rpc_server import limited, op, sealed, tree

pytest.importorskip("pgtrigger")

NOTHING = "0" * 64


@pytest.fixture(autouse=True)
def _rows() -> None:
    Dish.objects.create(name="soup", price=5)


def asking(*args: Any, model: str = "Dish", **options: Any) -> str:
    """Return the text of a message that asks for changes."""
    return sealed(tree(model, op("order_by", "name"), end=op("changes", *args)), **options)


async def answer(wire: str, **options: Any) -> Answer:
    found = await bridged(handle)(wire, **options)
    assert found is not None
    return open_answer(found, service().keys)


async def result(*args: Any, **options: Any) -> Any:
    """Return what a message is answered, a code if that is an error."""
    found = await answer(asking(*args, **options))
    if found.error is not None:
        return found.error.code
    (outcome,) = found.outcomes
    return outcome.value if outcome.error is None else outcome.error.code


async def test_answers() -> None:
    """Rows with what they are called; the same rows are no answer, others are one at once."""
    seen, rows = await result(None, 10)
    assert len(seen) == 64
    assert len(rows.rows) == 1
    assert await result(seen, 0) is None
    assert await result(seen, 0.1) is None
    assert (await result(NOTHING, 10))[0] == seen
    await Dish.objects.acreate(name="tea", price=1)
    other, rows = await result(seen, 10)
    assert other != seen
    assert len(rows.rows) == 2


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ((), "BadValue"),
        ((None,), "BadValue"),
        ((None, 1, 2), "BadValue"),
        (("short", 1), "BadValue"),
        ((1, 1), "BadValue"),
        ((None, -1), "BadValue"),
        ((None, True), "BadValue"),
        ((None, "1"), "BadValue"),
        ((None, float("nan")), "BadValue"),
        ((NOTHING.upper().replace("0", "A"), 1), "BadValue"),
    ],
)
async def test_arguments(args: Any, code: str) -> None:
    """What was seen, or null, and seconds: anything else is refused."""
    assert await result(*args) == code


async def test_alone() -> None:
    """A message that waits has one tree, and is no transaction."""
    asked = tree("Dish", end=op("changes", None, 1))
    found = await answer(sealed(asked, tree("Dish", end=op("count"))))
    assert [each.error and each.error.code for each in found.outcomes] == ["BadValue", None]
    for option in ("atomic", "dry"):
        assert await result(None, 1, **{option: True}) == "BadValue"


async def test_refusals() -> None:
    """What is not exposed for it, at all, or in the queryset, is refused as elsewhere."""
    assert await result(None, 1, model="Label") == "OperationNotAllowed"
    assert await result(None, 1, model="Hidden") == "NotExposed"
    asked = tree("Dish", op("order_by", "recipe"), end=op("changes", None, 1))
    (outcome,) = (await answer(sealed(asked))).outcomes
    assert outcome.error is not None
    assert outcome.error.code == "FieldNotAllowed"


async def test_where_it_cannot_wait() -> None:
    """Threads, and a transport whose turns it would hold, are named in the refusal."""

    def in_thread() -> str:
        try:
            return handle(asking(None, 1))
        finally:
            connections.close_all()

    found = open_answer(await asyncio.to_thread(in_thread), service().keys)
    assert found.error is not None
    assert "cannot wait" in str(found.error)
    found = await answer(asking(None, 1), waits=False)
    assert found.error is not None
    assert found.error.code == "OperationNotAllowed"
    assert "use http or postgres" in str(found.error)


async def test_replayed() -> None:
    """A message that waits is taken once, as any other."""
    wire = asking(None, 1)
    assert (await answer(wire)).error is None
    found = await answer(wire)
    assert found.error is not None
    assert found.error.code == "Replayed"


async def test_how_long() -> None:
    """A message waits for the time that it says, that of the limits, and to its deadline."""
    seen, _ = await result(None, 1)
    loop = asyncio.get_running_loop()
    for options, seconds in (({}, 0.2), ({"timeout": 0.3}, 30)):
        began = loop.time()
        assert await result(seen, seconds, **options) is None
        assert 0.1 < loop.time() - began < AT_ONCE
    with limited(max_wait=0.2):
        began = loop.time()
        assert await result(seen, 3600) is None
        assert 0.1 < loop.time() - began < AT_ONCE


async def test_later() -> None:
    """The answer that is not there yet comes later, and holds nobody; nothing is left of it."""
    seen, _ = await result(None, 1)
    answers: asyncio.Queue[str] = asyncio.Queue()
    for _ in range(3):
        assert await bridged(handle)(asking(seen, 30), later=answers.put_nowait) is None
    assert len(watching.detached) == 3
    assert sum(watching.waiting.values()) == 3
    await Dish.objects.acreate(name="tea", price=1)
    async with asyncio.timeout(AT_ONCE):
        for _ in range(3):
            (outcome,) = open_answer(await answers.get(), service().keys).outcomes
            assert len(outcome.value[1].rows) == 2
        while watching.detached:
            await asyncio.sleep(0)
    assert not watching.waiting
    # What is there already is answered as any other message is.
    assert (await answer(asking(seen, 30), later=answers.put_nowait)).error is None


async def test_the_process_ends() -> None:
    """All that wait are answered when the worker stops; they ask another one."""
    seen, _ = await result(None, 1)
    answers: asyncio.Queue[str] = asyncio.Queue()
    assert await bridged(handle)(asking(seen, 30), later=answers.put_nowait) is None
    waiting = asyncio.create_task(answer(asking(seen, 30)))
    await asyncio.sleep(0.1)
    async with asyncio.timeout(AT_ONCE):
        await watching.stop()
        assert open_answer(answers.get_nowait(), service().keys).outcomes[0].value is None
        assert (await waiting).outcomes[0].value is None
    assert not watching.waiting


@pytest.mark.parametrize("turns", [1, 2, 3, 5, 8, 13, 21, 40, 80, 300])
async def test_cancelled_anywhere(turns: int) -> None:
    """A message that is cancelled at whatever await leaves nothing behind."""
    seen, _ = await result(None, 1)
    work = asyncio.create_task(bridged(handle)(asking(seen, 30)))
    for _ in range(turns):
        await asyncio.sleep(0.0005)
    work.cancel()
    await asyncio.wait([work])
    assert work.cancelled()
    assert not watching.waiting
    hearing = changes.hearing_of("default")
    assert "waits=0" in repr(hearing)
    # What is left works.
    assert (await result(NOTHING, 1))[0] == seen


async def test_the_slots_of_looks() -> None:
    """Those that are cancelled while they wait for their turn to look keep nobody from it."""
    seen, _ = await result(None, 1)
    waiting = [asyncio.create_task(result(seen, 30)) for _ in range(20)]
    while sum(watching.waiting.values()) < 20:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.2)
    await Dish.objects.acreate(name="tea", price=1)
    for each in waiting[::2]:
        await asyncio.sleep(0.001)
        each.cancel()
    async with asyncio.timeout(AT_ONCE):
        await asyncio.wait(waiting)
    rest = [each for each in waiting if not each.cancelled()]
    assert len(rest) >= 10
    assert all(len(each.result()[1].rows) == 2 for each in rest)
    slots = changes.hearing_of("default").slots
    for _ in range(changes.AT_ONCE):
        assert not slots.locked()
        await slots.acquire()
    for _ in range(changes.AT_ONCE):
        slots.release()


@override_settings(ROOT_URLCONF="tests.rpc.site.urls")
async def test_a_client_that_goes_away() -> None:
    """The message of a client that closes its connection waits no longer."""
    seen, _ = await result(None, 1)
    body = asking(seen, 30).encode()
    gone = asyncio.Event()
    sent: list[Any] = []
    received = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Any:
        for each in received:
            return each
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(event: Any) -> None:
        sent.append(event)

    scope = {
        **{"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST"},
        **{"path": "/rpc/", "raw_path": b"/rpc/", "query_string": b"", "root_path": ""},
        "headers": [(b"host", b"127.0.0.1"), (b"content-length", str(len(body)).encode())],
    }
    serving = asyncio.create_task(get_asgi_application()(scope, receive, send))
    async with asyncio.timeout(AT_ONCE):
        while not watching.waiting:
            await asyncio.sleep(0.01)
        gone.set()
        await asyncio.wait([serving])
    assert not watching.waiting
    assert not sent


def test_on_each_loop(runner: asyncio.Runner) -> None:
    """Messages wait, and are told of changes, on each kind of loop."""

    async def ask() -> None:
        seen, _ = await result(None, 1)
        waiting = asyncio.create_task(result(seen, 30))
        while not watching.waiting:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        await Dish.objects.acreate(name="tea", price=1)
        async with asyncio.timeout(AT_ONCE):
            assert len((await waiting)[1].rows) == 2

    runner.run(ask())


def test_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """One record for each message, when it is answered, with the rows of the last look."""

    async def ask() -> None:
        seen, _ = await result(None, 1)
        assert await bridged(handle)(asking(seen, 0.2), later=lambda text: None) is None
        while watching.detached:
            await asyncio.sleep(0.01)

    with caplog.at_level("INFO", "pgbackend.rpc.server.messages"):
        asyncio.run(ask())
    found: list[Any] = [each for each in caplog.records if hasattr(each, "rpc_trees")]
    assert [each.rpc_trees for each in found] == [[("rpc_site.Dish", "changes")]] * 2
    assert [each.rpc_rows for each in found] == [1, 1]
    assert all(each.rpc_codes == [None] for each in found)
