"""A peer that resets its connections in the middle of an answer: row 41."""

from __future__ import annotations

import asyncio
import itertools
import select
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import psycopg
import pytest
from django.db import OperationalError, connection, transaction

from pgbackend import bridged
from tests.models import Author
from tests.support.limits import PATIENCE
from tests.support.server import Server
from tests.support.work import ended, execute, settled
from tests.support.wrapper import use_wrapper

# What comes of an answer before the reset: nothing, a part of a message's head, of a row, or more.
PIECES = [0, 1, 5, 60]

# In one of a statement's strings: its answer is cut.
MARK = "cut here"


class Cutter:
    """A proxy in a thread of its own that cuts the answer to a marked statement.

    A piece of the answer and the RST are there together when the loop looks next: it is held
    meanwhile.
    """

    def __init__(self, target: tuple[str, int], piece: int) -> None:
        self.target = target
        self.piece = piece
        # When the statement has come, when it may be answered, and when the answer was cut.
        self.asked, self.go, self.cut = threading.Event(), threading.Event(), threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self.go.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for each in self._threads:
            each.join(PATIENCE)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                # It was closed.
                return
            thread = threading.Thread(target=self._serve, args=[client])
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(self.target) as server:
            cutting = False
            while True:
                for each in select.select([client, server], [], [])[0]:
                    try:
                        data = each.recv(1 << 20)
                    except ConnectionError:
                        return
                    if not data:
                        return
                    if each is client:
                        cutting = cutting or MARK.encode() in data
                        server.sendall(data)
                    elif cutting:
                        self._cut(client, data)
                        return
                    else:
                        client.sendall(data)

    def _cut(self, client: socket.socket, data: bytes) -> None:
        self.asked.set()
        self.go.wait(PATIENCE)
        if self.piece:
            client.sendall(data[: self.piece])
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        self.cut.set()


@contextmanager
def cutting(server: Server, piece: int) -> Iterator[Cutter]:
    """Let the running task use a pool of one, through a `Cutter`."""
    cutter = Cutter((str(server.conn.info.host), server.conn.info.port), piece)
    use_wrapper(HOST="127.0.0.1", PORT=cutter.port, options={"pool": {"max_size": 1}})
    try:
        yield cutter
    finally:
        cutter.close()


async def statement() -> None:
    await execute(f"SELECT repeat('{MARK}', 1000)")


async def query() -> None:
    await Author.objects.filter(name=MARK).afirst()


async def block() -> None:
    async with transaction.atomic():
        await Author.objects.acreate(name=MARK)


async def savepoint() -> None:
    async with transaction.atomic():
        await Author.objects.acreate(name="lost")
        async with transaction.atomic():
            await Author.objects.acreate(name=MARK)


async def server_side_cursor() -> None:
    async for _ in Author.objects.exclude(name=MARK).aiterator(chunk_size=10):
        pass


@bridged
def copy() -> None:
    with (
        connection.cursor() as cursor,
        cursor.copy(f"COPY (SELECT repeat('{MARK}', 1000)) TO STDOUT") as reading,
    ):
        list(reading)


FORMS = [statement, query, block, savepoint, server_side_cursor, copy]


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("form", FORMS)
def test_41_reset_after_a_part_of_an_answer(
    form: Callable[[], Awaitable[None]], piece: int, runner: asyncio.Runner, server: Server
) -> None:
    """However much of an answer came before the reset, it is an error, and the pool is whole."""

    async def main() -> None:
        await Author.objects.abulk_create(Author(name=f"author {n}") for n in range(50))
        with cutting(server, piece) as cutter:
            await execute("SELECT 1")
            task = asyncio.ensure_future(form())
            await asyncio.to_thread(cutter.asked.wait, PATIENCE)
            cutter.go.set()
            # The loop is held: it learns of the piece and of the reset at once.
            assert cutter.cut.wait(PATIENCE)
            (error,) = await ended(task)
            # COPY has psycopg's own errors, as with Django's backend.
            assert isinstance(error, OperationalError | psycopg.OperationalError)
            assert await execute("SELECT 1") == 1
            assert (await settled())["pool_size"] == 1
            await bridged(connection.close_pool)()

    runner.run(main())


def test_41_ends_one_after_another(runner: asyncio.Runner, server: Server) -> None:
    """While busy backends are ended one after another no task hangs, and the pool is whole."""

    async def main() -> None:
        size = 3
        use_wrapper(options={"pool": {"max_size": size}})
        numbers = itertools.count()

        async def work() -> int:
            failed = 0
            while next(numbers) < 200:
                try:
                    async with transaction.atomic():
                        for _ in range(3):
                            await Author.objects.acount()
                except OperationalError:
                    failed += 1
            return failed

        tasks = [asyncio.create_task(work()) for _ in range(10)]
        while not all(task.done() for task in tasks):
            # Those who speak to a backend that has gone are reset.
            await asyncio.to_thread(
                server.all,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'pgbackend-tests' AND state <> 'idle' LIMIT 1",
            )
        failed = await ended(*tasks)
        assert sum(failed) > 0
        assert (await settled())["pool_size"] <= size

    runner.run(main())
