"""COPY for models and querysets: many rows in and out, by few messages and in flat memory.

The other side of a COPY is a task of its own, so that neither waits for single rows.

https://www.postgresql.org/docs/current/sql-copy.html
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    Callable,
    Iterable,
    Iterator,
    Sequence,
)
from typing import Any

from django.core.exceptions import EmptyResultSet
from django.db import connections, router
from django.db.models import AutoField, Field, Model, QuerySet

from .bridge.current import is_bridged
from .bridge.greenlets import await_bridged
from .bridge.lock import BridgedLock
from .wrapper.attributes import BackendWrapper
from .wrapper.dispatch import run_for_alias

__all__ = ["copy_from", "copy_to"]

# How many rows go from one side to the other at once, and how many such portions may wait.
_ROWS = 500
_PORTIONS = 2

# For how long a COPY may wait for its other side while a statement waits for the COPY, seconds.
_STALLED = 1.0

Progress = Callable[[int], object]


async def copy_from(
    model: type[Model],
    rows: Iterable[Any] | AsyncIterable[Any],
    *,
    fields: Sequence[str] | None = None,
    using: str | None = None,
    progress: Progress | None = None,
) -> int:
    """Write *rows* into the table of *model* by one COPY; return how many there were.

    A row is an instance of *model*, or a sequence of values for *fields*. By default these are all
    but an automatic primary key, those that the database computes and those with a ``db_default``.
    Fields that are left out have their defaults. As in ``bulk_create``, ``save()`` is not called
    and no signals are sent; the primary keys that the server makes are not known afterwards.

    *progress* is called with the number of rows that were sent, every now and then. All rows are
    written, or none. The *rows* are read by a task of its own. In a transaction they must make no
    statement of that, which would wait for the COPY: RuntimeError after a second.
    """
    alias = using or router.db_for_write(model)
    _check(alias)
    chosen, others = _fields(model, fields)
    pipe = _Pipe()

    def write() -> int:
        done = 0
        connection = connections[alias]
        quote = connection.ops.quote_name
        columns = ", ".join(quote(field.column) for field in [*chosen, *others])
        statement = f"COPY {quote(model._meta.db_table)} ({columns}) FROM STDIN"
        with (
            connection.cursor() as cursor,
            # psycopg's own object raises its own errors.
            connection.wrap_database_errors,
            cursor.copy(statement) as copy,
        ):
            pipe.lock = copy.connection.lock
            while portion := pipe.receive():
                for row in portion:
                    copy.write_row(_values(row, model, chosen, others, connection))
                done += len(portion)
                if progress is not None:
                    progress(done)
        return done

    reading = asyncio.create_task(_feed(pipe, rows))
    try:
        written: int = await run_for_alias(alias, write)
        return written
    finally:
        pipe.close()
        await _stop(reading)


async def _feed(pipe: _Pipe, rows: Iterable[Any] | AsyncIterable[Any]) -> None:
    """Send *rows* in portions, and what they raise."""
    try:
        portion = []
        if isinstance(rows, AsyncIterable):
            async for row in rows:
                portion.append(row)
                if len(portion) == _ROWS:
                    await pipe.put(portion)
                    portion = []
        else:
            for row in rows:
                portion.append(row)
                if len(portion) == _ROWS:
                    await pipe.put(portion)
                    portion = []
        if portion:
            await pipe.put(portion)
        await pipe.put([])
    except _Left:
        # The COPY has failed.
        pass
    except Exception as error:
        await pipe.put(error)


def _fields(
    model: type[Model], names: Sequence[str] | None
) -> tuple[list[Field[Any, Any]], list[Field[Any, Any]]]:
    """Return the fields that rows have, and the others that a COPY into *model* writes."""
    meta = model._meta
    if any(parent._meta.concrete_model is not meta.concrete_model for parent in meta.parents):
        raise ValueError(
            f"{model.__name__} has columns in more than one table, and COPY writes into one"
        )
    written = [
        field
        for field in meta.concrete_fields
        if not isinstance(field, AutoField) and not field.generated and not field.has_db_default()
    ]
    if names is None:
        return written, []
    chosen = [meta.get_field(name) for name in names]
    return chosen, [field for field in written if field not in chosen]


def _values(
    row: Any, model: type[Model], fields: list[Any], others: list[Any], connection: Any
) -> list[Any]:
    """Return what is sent of a row, for the columns of *fields* and *others*."""
    if isinstance(row, Model):
        row = [field.pre_save(row, True) for field in (*fields, *others)]
    elif len(row) != len(fields):
        raise ValueError(
            f"a row for {model.__name__} has {len(fields)} values, for"
            f" {', '.join(field.name for field in fields)}; this one has {len(row)}"
        )
    elif others:
        # The values that a new instance has.
        new = model()
        row = [*row, *(field.pre_save(new, True) for field in others)]
    written = zip((*fields, *others), row, strict=True)
    return [field.get_db_prep_save(value, connection) for field, value in written]


async def copy_to(
    queryset: QuerySet[Any], *, progress: Progress | None = None
) -> AsyncGenerator[Any, None]:
    """Iterate over *queryset* by one COPY: instances, values or tuples, as it has them.

    The rows come as the server sends them, and few wait in memory. Outside a transaction the COPY
    has a connection of its own until the iteration ends. In one it runs there, and no other
    statement can until its end: RuntimeError, if it is waited for a second. What leaves
    the iteration early stops the COPY; close it by `contextlib.aclosing` where that matters.

    *progress* is called with the number of rows so far, every now and then.
    """
    if queryset._prefetch_related_lookups:
        raise ValueError("copy_to() takes no prefetch_related(): the rows are not there together")
    alias = queryset.db
    _check(alias)
    pipe = _Pipe()

    def read() -> None:
        try:
            portion = []
            for row in _rows(queryset, alias, pipe):
                portion.append(row)
                if len(portion) == _ROWS:
                    pipe.send(portion)
                    portion = []
            if portion:
                pipe.send(portion)
            pipe.send([])
        except _Left:
            # Nobody reads on.
            pass
        except Exception as error:
            pipe.send(error)

    reading = asyncio.create_task(run_for_alias(alias, read))
    done = 0
    try:
        while portion := await pipe.get():
            for row in portion:
                yield row
            done += len(portion)
            if progress is not None:
                progress(done)
    finally:
        pipe.close()
        await _stop(reading)


def _rows(queryset: Any, alias: str, pipe: _Pipe) -> Iterator[Any]:
    """Yield the rows of *queryset*, made by Django of what a COPY sends."""
    queryset = queryset._chain()
    compiler = queryset.query.get_compiler(using=alias)

    def execute(*args: Any, **kwargs: Any) -> Iterator[list[Any]]:
        # This prepares the compiler, which Django asks at once for what it has selected.
        try:
            sql, params = compiler.as_sql()
        except EmptyResultSet:
            return iter(())
        return _copied(compiler.connection, sql, params, pipe)

    compiler.execute_sql = execute
    queryset.query.get_compiler = lambda *args, **kwargs: compiler
    yield from queryset._iterable_class(queryset, chunked_fetch=True, chunk_size=_ROWS)


def _copied(connection: Any, sql: str, params: Any, pipe: _Pipe) -> Iterator[list[Any]]:
    """Yield lists of the rows of a query, with the values that a cursor would return."""
    with connection.cursor() as cursor:
        # The types of the columns: COPY does not say them.
        cursor.execute(f"SELECT * FROM ({sql}) pgbackend_types LIMIT 0", params)
        types = [column.type_code for column in cursor.description]
        statement = f"COPY ({sql}) TO STDOUT"
        with connection.wrap_database_errors, cursor.copy(statement, params) as copy:
            pipe.lock = copy.connection.lock
            copy.set_types(types)
            rows: list[Any] = []
            while (row := copy.read_row()) is not None:
                rows.append(row)
                if len(rows) == _ROWS:
                    yield rows
                    rows = []
            if rows:
                yield rows


def _check(alias: str) -> None:
    if not isinstance(connections[alias], BackendWrapper):
        raise ValueError(f"COPY is for databases of pgbackend, which {alias!r} is not")


def _busy_error() -> BaseException:
    return RuntimeError(
        "a COPY runs in this transaction, and waits for its other side, so no other statement can"
        " run in it: make none where the rows of copy_from() are made, or those of copy_to() used"
    )


class _Left(Exception):
    """The other side has left."""


class _Pipe:
    """Portions of rows on their way from one side to the other, a few at most.

    One side is a coroutine. The other is a function, bridged or in a thread.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Any] = asyncio.Queue(_PORTIONS)
        self._left = asyncio.Event()
        # That of the connection, which the COPY holds.
        self.lock: Any = None

    async def put(self, portion: Any) -> None:
        """Send rows; an empty list is the end, and an exception is raised on the other side."""
        if self._left.is_set():
            raise _Left
        leaving = asyncio.ensure_future(self._left.wait())
        putting = asyncio.ensure_future(self._queue.put(portion))
        try:
            await asyncio.wait({leaving, putting}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            put = putting.done()
            putting.cancel()
        if not put:
            raise _Left

    async def get(self) -> Any:
        """Return the next rows; raise what the other side has raised."""
        found = await self._queue.get()
        if isinstance(found, Exception):
            raise found
        return found

    def send(self, portion: Any) -> None:
        """Do what `put` does, in a function."""
        self._await(self.put(portion))

    def receive(self) -> Any:
        """Do what `get` does, in a function."""
        return self._await(self.get())

    def _await(self, coroutine: Any) -> Any:
        if is_bridged():
            return await_bridged(self._watched(coroutine))
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    async def _watched(self, coroutine: Any) -> Any:
        """Await *coroutine*; refuse statements that wait for the COPY, if it waits for long.

        The other side of a COPY may be the one that waits, for ever.
        """
        waiting = asyncio.ensure_future(coroutine)
        try:
            while not waiting.done():
                await asyncio.wait({waiting}, timeout=_STALLED)
                if not waiting.done() and isinstance(self.lock, BridgedLock):
                    self.lock.refuse_waiting(_busy_error)
            return waiting.result()
        finally:
            waiting.cancel()

    def close(self) -> None:
        """Let the other side end."""
        self._left.set()


async def _stop(task: asyncio.Task[Any]) -> None:
    """End the other side's *task*, whose error this side has got already."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()
