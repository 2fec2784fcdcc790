"""SQLAlchemy's asyncio ORM, with psycopg and with asyncpg.

A request has a session. What only reads has it in autocommit, as Django reads; what writes has
sessions with a transaction each.
"""

import asyncio
import datetime
import os
import uuid
from collections.abc import Awaitable, Callable
from decimal import Decimal
from typing import Any

from sqlalchemy import BigInteger, DateTime, ForeignKey, Numeric, String, Text, func, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    mapped_column,
    relationship,
    selectinload,
)

from tests.benchmarks import values
from tests.benchmarks.peer import AsyncPeer


class Base(DeclarativeBase):
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)


class Item(Base):
    __tablename__ = "bench_item"
    name: Mapped[str] = mapped_column(String(100))


class Author(Base):
    __tablename__ = "bench_author"
    name: Mapped[str] = mapped_column(String(100))
    books: Mapped[list["Book"]] = relationship()
    widebooks: Mapped[list["WideBook"]] = relationship()


class Book(Base):
    __tablename__ = "bench_book"
    name: Mapped[str] = mapped_column(String(100))
    author_id: Mapped[int] = mapped_column(ForeignKey("bench_author.id"))
    chapters: Mapped[list["Chapter"]] = relationship()


class Chapter(Base):
    __tablename__ = "bench_chapter"
    name: Mapped[str] = mapped_column(String(100))
    book_id: Mapped[int] = mapped_column(ForeignKey("bench_book.id"))


class TwentyFields:
    """The key, and nineteen more."""

    author_id: Mapped[int] = mapped_column(ForeignKey("bench_author.id"))
    n1: Mapped[int]
    n2: Mapped[int]
    n3: Mapped[int]
    n4: Mapped[int]
    big: Mapped[int] = mapped_column(BigInteger)
    name: Mapped[str] = mapped_column(String(100))
    s2: Mapped[str] = mapped_column(String(100))
    s3: Mapped[str] = mapped_column(String(100))
    s4: Mapped[str] = mapped_column(String(100))
    t: Mapped[str] = mapped_column(Text)
    f1: Mapped[float]
    f2: Mapped[float]
    b1: Mapped[bool]
    b2: Mapped[bool]
    d: Mapped[datetime.date]
    ts: Mapped[datetime.datetime] = mapped_column(DateTime(timezone=True))
    price: Mapped[Decimal] = mapped_column(Numeric(10, 2))
    u: Mapped[uuid.UUID]


class Wide(TwentyFields, Base):
    __tablename__ = "bench_wide"


class WideBook(TwentyFields, Base):
    __tablename__ = "bench_widebook"
    notes: Mapped[list["WideNote"]] = relationship()


class WideNote(TwentyFields, Base):
    __tablename__ = "bench_widenote"
    book_id: Mapped[int] = mapped_column(ForeignKey("bench_widebook.id"))


class Slow20(Base):
    __tablename__ = "bench_slow20"
    name: Mapped[str] = mapped_column(String(100))


class Slow100(Base):
    __tablename__ = "bench_slow100"
    name: Mapped[str] = mapped_column(String(100))


TABLES: dict[str, Any] = {"item": Item, "wide": Wide}


class Peer(AsyncPeer):
    """*driver* is psycopg or asyncpg."""

    def __init__(self, dsn: str, pool: int, driver: str) -> None:
        super().__init__(dsn, pool)
        self.driver = driver

    async def open(self) -> None:
        name = {"application_name": os.environ["BENCH_NAME"]}
        self.engine = create_async_engine(
            self.dsn.replace("postgresql://", f"postgresql+{self.driver}://"),
            pool_size=self.pool_size,
            max_overflow=0,
            pool_timeout=60,
            connect_args={"server_settings": name} if self.driver == "asyncpg" else name,
        )
        self.transactions = async_sessionmaker(self.engine, expire_on_commit=False)
        self.sessions = async_sessionmaker(
            self.engine.execution_options(isolation_level="AUTOCOMMIT"), expire_on_commit=False
        )

    async def close(self) -> None:
        await self.engine.dispose()

    async def request(self, operation: Callable[..., Awaitable[Any]], spec: Any) -> None:
        async with self.sessions() as session:
            for _ in range(spec["repeat"]):
                await operation(session=session, **spec["arguments"])

    async def get(self, table: str, session: AsyncSession | None = None) -> None:
        assert session is not None
        model = TABLES[table]
        found = await session.scalars(select(model).where(model.id == values.key()))
        found.one()

    async def rows(self, table: str, session: AsyncSession, rows: int = values.ROWS) -> None:
        model = TABLES[table]
        query = select(model).where(model.id >= values.start(rows)).order_by(model.id).limit(rows)
        assert len((await session.scalars(query)).all()) == rows

    async def update(self, table: str, session: AsyncSession) -> None:
        model = TABLES[table]
        async with self.transactions.begin() as transaction:
            query = select(model).where(model.id == values.key()).with_for_update()
            row = (await transaction.scalars(query)).one()
            row.name = values.new_name()

    async def slow(self, count: int, session: AsyncSession) -> None:
        async def get() -> None:
            async with self.sessions() as own:
                (await own.scalars(select(Slow20).where(Slow20.id == 1))).one()

        await asyncio.gather(*(get() for _ in range(count)))

    async def wait(self, session: AsyncSession) -> None:
        (await session.scalars(select(Slow100).where(Slow100.id == 1))).one()

    async def create(self, table: str, session: AsyncSession) -> None:
        async with self.transactions.begin() as transaction:
            transaction.add(TABLES[table](**values.new_row(table)))

    async def bulk_create(self, table: str, session: AsyncSession) -> None:
        async with self.transactions.begin() as transaction:
            transaction.add_all(
                [TABLES[table](**values.new_row(table)) for _ in range(values.BULK)]
            )

    async def update_or_create(self, table: str, session: AsyncSession) -> None:
        model = TABLES[table]
        async with self.transactions.begin() as transaction:
            query = select(model).where(model.id == values.key()).with_for_update()
            row = (await transaction.scalars(query)).one_or_none()
            if row is None:
                transaction.add(model(**values.new_row(table)))
            else:
                row.name = values.new_name()

    async def prefetch(self, table: str, session: AsyncSession) -> None:
        first = values.some_author()
        path = (
            selectinload(Author.books).selectinload(Book.chapters)
            if table == "item"
            else selectinload(Author.widebooks).selectinload(WideBook.notes)
        )
        query = (
            select(Author)
            .where(Author.id.between(first, first + values.PREFETCHED - 1))
            .options(path)
        )
        assert len((await session.scalars(query)).all()) == values.PREFETCHED

    async def aggregate(self, table: str, session: AsyncSession) -> None:
        model = TABLES[table]
        first = values.start(values.AGGREGATED)
        query = select(func.count(model.id), func.min(model.id), func.max(model.name)).where(
            model.id.between(first, first + values.AGGREGATED - 1)
        )
        assert (await session.execute(query)).one()[0] == values.AGGREGATED

    async def iterate(self, table: str, session: AsyncSession) -> None:
        async with self.transactions() as transaction:
            query = select(TABLES[table]).execution_options(yield_per=2000)
            async for _ in await transaction.stream_scalars(query):
                pass

    async def savepoints(self, session: AsyncSession) -> None:
        async with self.transactions.begin() as transaction:
            for _ in range(5):
                async with transaction.begin_nested():
                    await self.get("item", transaction)
