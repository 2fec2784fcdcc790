"""Streams: the notifications of a channel for one reader."""

import asyncio
import datetime
import gc
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from django.db import transaction

from pgbackend.pubsub import NotificationsMissed, PubsubError, SlowConsumer, anotify
from pgbackend.pubsub.hubs import hub_of
from tests.support.fix_loops import Main
from tests.support.pubsub import until
from tests.support.server import Server

from .site.channels import AuthorPlain, Orders, Reads
from .site.jobs import Plain
from .site.models import Author

LISTENS = "SELECT pid FROM pg_stat_activity WHERE query ~ '^(LISTEN|UNLISTEN|SELECT pg_notify)'"
LISTENS += " AND pid <> pg_backend_pid()"
GONE = "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = %s"


def test_stream(run_main: Main) -> None:
    """Each reader gets what is committed while its stream is open, of any size, in its order."""

    async def main() -> None:
        async with Plain.stream() as one, Plain.stream() as two:
            async with transaction.atomic():
                await anotify(Plain, number=1)
                await anotify(Plain, number=2, key="x" * 9000)
            for stream in (one, two):
                first, second = await anext(stream), await anext(stream)
                assert (first.number, second.number, second.key) == (1, 2, "x" * 9000)
            one.close()
            assert [each async for each in one] == []
            await anotify(Plain, number=3)
            assert (await anext(two)).number == 3

    run_main(main())


async def test_rows() -> None:
    """The stream of a table gives its rows, though nobody but a trigger notifies."""
    async with AuthorPlain.stream() as changes:
        author = await Author.objects.acreate(name="Ann")
        change = await anext(changes)
        assert (change.operation, change.old, change.new) == ("INSERT", None, author)


async def test_streams_share_a_connection(server: Server) -> None:
    """One connection listens for all streams; the last one takes it with it."""
    async with Plain.stream() as one, Reads.stream() as two:
        ((pid,),) = server.all(LISTENS)
        await anotify(Reads, model_id=5, date=datetime.date.min)
        await anotify(Plain, number=1)
        assert (await anext(two)).model_id == 5
        assert (await anext(one)).number == 1
    await until(lambda: server.one(GONE, pid))


async def test_slow_reader() -> None:
    """A reader for whom too much waits gets an error that names the channel, and nothing more."""
    async with Plain.stream(limit=2) as stream, Plain.stream() as other:
        for number in range(4):
            await anotify(Plain, number=number)
        assert [(await anext(other)).number for _ in range(4)] == [0, 1, 2, 3]
        for _ in range(2):
            with pytest.raises(SlowConsumer, match=r"more than 2 notifications of .*\.Plain"):
                await anext(stream)


async def test_outage(server: Server) -> None:
    """After an outage the reader is told that something may be missing, and goes on."""
    async with Plain.stream() as stream:
        ((pid,),) = server.all(LISTENS)
        await anotify(Plain, number=1)
        # A server that ends the connection first sends nothing of what was committed before.
        await until(lambda: "waiting=1" in repr(stream))
        assert server.one("SELECT pg_terminate_backend(%s, 5000)", pid)
        await anotify(Plain, number=2)
        assert (await anext(stream)).number == 1
        with pytest.raises(NotificationsMissed, match=r"jobs\.Plain may have been missed"):
            await anext(stream)
        await anotify(Plain, number=3)
        assert (await anext(stream)).number == 3


async def test_stream_that_is_dropped() -> None:
    """A stream that is left without being closed is heard for no longer."""

    async def first() -> int:
        async for notification in Reads.stream():
            return notification.model_id
        raise AssertionError

    async with Plain.stream():
        hub = hub_of()
        reading = asyncio.create_task(first())
        await until(lambda: len(hub._told) == 4)
        await anotify(Reads, model_id=7)
        assert await reading == 7
        # Two names for each channel: one is django-pgpubsub's.
        await until(lambda: len(hub._told) == 2)


async def drop_after_one(seen: asyncio.Event) -> None:
    async for _ in Reads.stream():
        break


async def drop_in_a_cycle(seen: asyncio.Event) -> None:
    stream = Reads.stream()
    await stream.__aenter__()
    stream.itself = stream  # type: ignore[attr-defined]
    await seen.wait()
    del stream
    # In another thread, as the collector of garbage may run.
    await asyncio.to_thread(gc.collect)


async def drop_a_generator(seen: asyncio.Event) -> None:
    async def events() -> AsyncIterator[int]:
        async with Reads.stream() as reads:
            async for each in reads:
                yield each.model_id

    async for _ in events():
        break


async def close_only(seen: asyncio.Event) -> None:
    stream = Reads.stream()
    await stream.__aenter__()
    await seen.wait()
    stream.close()
    kept.append(stream)


async def cancel_reader(seen: asyncio.Event) -> None:
    async def read() -> None:
        async for _ in Reads.stream():
            pass

    reading = asyncio.create_task(read())
    await seen.wait()
    reading.cancel()
    await asyncio.wait([reading])


kept: list[Any] = []


@pytest.mark.parametrize(
    "drop", [drop_after_one, drop_in_a_cycle, drop_a_generator, close_only, cancel_reader]
)
def test_connection_of_a_dropped_stream(
    drop: Callable[[asyncio.Event], Any], run_main: Main, server: Server
) -> None:
    """A stream that is left in any way takes the listening connection with it."""

    async def main() -> None:
        seen = asyncio.Event()
        dropping = asyncio.create_task(drop(seen))
        await until(lambda: server.all(LISTENS))
        ((pid,),) = server.all(LISTENS)
        seen.set()
        while not dropping.done():
            await anotify(Reads, model_id=1)
            await asyncio.sleep(0.01)
        await dropping
        await until(lambda: server.one(GONE, pid), pid)
        # And another one is there for whoever comes next.
        async with Reads.stream() as stream:
            await anotify(Reads, model_id=2)
            assert (await anext(stream)).model_id == 2

    kept.clear()
    run_main(main())


def test_streams_of_ended_loops() -> None:
    """Streams that are open when their loops end keep no loop but the last one."""
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def leave_open() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        await Reads.stream().__aenter__()

    for _ in range(4):
        asyncio.run(leave_open())
    gc.collect()
    assert [each() for each in loops[:-1]] == [None] * 3


def test_stored_channel() -> None:
    """A stored channel has no stream: its notifications are for listeners."""
    with pytest.raises(PubsubError, match=r"Orders is a stored channel"):
        Orders.stream()


def test_unread_payload(caplog: pytest.LogCaptureFixture, run_main: Main, server: Server) -> None:
    """A notification that cannot be read is logged, and the next one comes."""

    async def main() -> None:
        async with Plain.stream() as stream:
            server.all("SELECT pg_notify(%s, '[]')", Plain.listen_name())
            server.all("SELECT pg_notify(%s, '@0')", Plain.listen_name())
            await anotify(Plain, number=1)
            assert (await anext(stream)).number == 1

    run_main(main())
    assert "a notification of" in caplog.text
    assert "cannot be read" in caplog.text
    assert "has no payload" in caplog.text
