"""Which alias an a-method will use: by the router, which is asked as often as Django asks it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.contenttypes.models import ContentType
from django.core.cache.backends.db import DatabaseCache
from django.db import connections, transaction
from django.db.models import Count, Prefetch, aprefetch_related_objects, prefetch_related_objects
from django.test.utils import override_settings

from pgbackend import bridged
from pgbackend.bridge.greenlets import run_bridged
from tests.models import Author, Book, Elsewhere, Tag
from tests.support.server import Server
from tests.support.wrapper import AddAlias

STOCK = "django.db.backends.postgresql"


class ReadsAndWrites:
    """A router with an alias to read from and one to write to; it notes what it is asked."""

    def __init__(self, reads: str, writes: str) -> None:
        self.reads = reads
        self.writes = writes
        self.asked: list[Any] = []

    def _answer(self, question: str, alias: str, model: Any, hints: dict[str, Any]) -> str | None:
        if model is ContentType:
            return None
        self.asked.append((question, model.__name__, sorted(hints)))
        return alias

    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        return self._answer("read", self.reads, model, hints)

    def db_for_write(self, model: Any, **hints: Any) -> str | None:
        return self._answer("write", self.writes, model, hints)

    def allow_relation(self, *args: Any, **hints: Any) -> bool:
        return True


def author() -> Author:
    return Author(pk=1, name="Ada")


def loaded(model: Any) -> Any:
    """Return a row as one that was read before, from wherever."""
    instance = model(pk=1)
    instance._state.adding = False
    return instance


def book() -> Book:
    return Book(pk=1, title="A")


# The subject, the name of the synchronous twin and its arguments, which are made when it is called.
WAYS: dict[str, tuple[Callable[[], Any], str, Callable[[], tuple[Any, ...]], dict[str, Any]]] = {
    f"{name}{note}": (subject, name, arguments, keywords)
    for note, subject, name, arguments, keywords in [
        ("", lambda: Author.objects, "create", tuple, {"name": "new"}),
        ("", lambda: Author.objects, "bulk_create", lambda: ([Author(name="new")],), {}),
        ("", lambda: Author.objects, "bulk_update", lambda: ([author()], ["name"]), {}),
        ("", lambda: Author.objects, "get_or_create", tuple, {"name": "Ada"}),
        (" new", lambda: Author.objects, "get_or_create", tuple, {"name": "new"}),
        ("", lambda: Author.objects, "update_or_create", tuple, {"name": "Ada"}),
        ("", lambda: Author.objects.filter(pk=1), "update", tuple, {"name": "Eve"}),
        ("", lambda: Author.objects.all(), "delete", tuple, {}),
        ("", lambda: Author.objects, "get", tuple, {"pk": 1}),
        (" to change", lambda: Author.objects.filter(pk=1), "first", tuple, {}),
        ("", lambda: Author.objects, "first", tuple, {}),
        ("", lambda: Author.objects, "last", tuple, {}),
        ("", lambda: Author.objects, "earliest", lambda: ("pk",), {}),
        ("", lambda: Author.objects, "latest", lambda: ("pk",), {}),
        ("", lambda: Author.objects, "count", tuple, {}),
        ("", lambda: Author.objects, "exists", tuple, {}),
        ("", lambda: Author.objects, "contains", lambda: (author(),), {}),
        ("", lambda: Author.objects, "aggregate", tuple, {"n": Count("pk")}),
        ("", lambda: Author.objects, "in_bulk", tuple, {}),
        ("", lambda: Author.objects.all(), "explain", tuple, {}),
        (" prefetching", lambda: Author.objects.prefetch_related("books"), "first", tuple, {}),
        ("", author, "save", tuple, {"force_update": True}),
        ("", author, "delete", tuple, {}),
        ("", lambda: loaded(Author), "refresh_from_db", tuple, {}),
        (" of books", lambda: author().books, "add", lambda: (book(),), {"bulk": False}),
        (" of books", lambda: author().books, "create", tuple, {"title": "new"}),
        (" of books", lambda: author().books, "get_or_create", tuple, {"title": "new"}),
        (" of books", lambda: author().books, "update_or_create", tuple, {"title": "new"}),
        (" of books", lambda: author().books, "remove", lambda: (Book(pk=1, author_id=1),), {}),
        (" of books", lambda: author().books, "clear", tuple, {}),
        (" of books", lambda: author().books, "set", lambda: ([],), {}),
        (" of books", lambda: author().books, "count", tuple, {}),
        (" of readers", lambda: book().readers, "add", lambda: (author(),), {}),
        (" of readers", lambda: book().readers, "create", tuple, {"name": "new"}),
        (" of readers", lambda: book().readers, "get_or_create", tuple, {"name": "new"}),
        (" of readers", lambda: book().readers, "update_or_create", tuple, {"name": "new"}),
        (" of readers", lambda: book().readers, "remove", lambda: (author(),), {}),
        (" of readers", lambda: book().readers, "clear", tuple, {}),
        (" of readers", lambda: book().readers, "set", lambda: ([author()],), {}),
        (" of tags", lambda: author().tags, "create", tuple, {"name": "new"}),
        (" of tags", lambda: author().tags, "get_or_create", tuple, {"name": "new"}),
        (" of tags", lambda: author().tags, "add", lambda: (Tag(name="new"),), {"bulk": False}),
        (" of tags", lambda: author().tags, "clear", tuple, {}),
        (" of tags", lambda: author().tags, "set", lambda: ([],), {}),
    ]
}

# Each is Django's own path in the end, or the bridge: reads from the first, writes to the second.
ARRANGEMENTS = {
    "writes to another engine": ("ours", "stock"),
    "reads from another engine": ("stock", "ours"),
    "writes to one switched off": ("ours", "off"),
    "reads from one switched off": ("off", "ours"),
    "both ours": ("ours", "ours"),
}


@pytest.fixture
def by_kind(add_alias: AddAlias, server: Server) -> dict[str, str]:
    """Aliases of the three kinds, all of them for the same database."""
    server.all("INSERT INTO tests_author (name) VALUES ('Ada')")
    return {
        "ours": add_alias(),
        "stock": add_alias(ENGINE=STOCK),
        "off": add_alias({"bridge": False}),
    }


async def close_threads_connections() -> None:
    await sync_to_async(forget)()


def forget() -> None:
    """Close the thread's wrappers; the next test's aliases have the same names."""
    for wrapper in connections.all(initialized_only=True):
        wrapper.close()
        del connections[wrapper.alias]


def in_thread(function: Callable[[], Any]) -> None:
    """Call *function* as synchronous code does, in a thread of its own."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:
            failed.append(error)
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def renew(server: Server) -> None:
    server.all("TRUNCATE tests_author, tests_book, tests_tag RESTART IDENTITY CASCADE")
    server.all("INSERT INTO tests_author (name) VALUES ('Ada')")
    server.all(
        "INSERT INTO tests_book (title, author_id, price, on_loan, data)"
        " VALUES ('A', 1, 0, false, '{}')"
    )


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("way", WAYS)
async def test_each_a_method_goes_by_the_alias_it_uses(
    way: str, arrangement: str, by_kind: dict[str, str], server: Server
) -> None:
    """It works wherever the router sends it, and the router hears what its twin would ask."""
    subject, name, arguments, keywords = WAYS[way]
    router = ReadsAndWrites(*(by_kind[kind] for kind in ARRANGEMENTS[arrangement]))
    with override_settings(DATABASE_ROUTERS=[router]):
        renew(server)
        try:
            # A generic relation's manager asks for the content type.
            of = await run_bridged(subject)
            await getattr(of, f"a{name}")(*arguments(), **keywords)
        finally:
            await close_threads_connections()
        asked, router.asked = router.asked, []
        renew(server)
        in_thread(lambda: getattr(subject(), name)(*arguments(), **keywords))
    if way != "first prefetching":
        # Where the other models are, has to be asked before there is a row to ask about.
        assert sorted(asked) == sorted(router.asked)
    assert asked


LISTS: dict[str, tuple[Callable[[], Any], Callable[[], Any]]] = {
    "a queryset": (Author.objects.all, lambda: list(Author.objects.all())),
    "select_for_update": (
        lambda: Author.objects.select_for_update(),
        lambda: list(Author.objects.select_for_update()),
    ),
    "raw": (
        lambda: Author.objects.raw("SELECT * FROM tests_author"),
        lambda: list(Author.objects.raw("SELECT * FROM tests_author")),
    ),
    "aiterator": (
        lambda: Author.objects.aiterator(),
        lambda: list(Author.objects.iterator()),
    ),
    "a related manager": (
        lambda: author().books.all(),
        lambda: list(author().books.all()),
    ),
}


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
@pytest.mark.parametrize("rows", LISTS)
async def test_each_iteration_goes_by_the_alias_it_uses(
    rows: str, arrangement: str, by_kind: dict[str, str], server: Server
) -> None:
    """`async for` and `aiterator()` work wherever the router sends them, asking it as often."""
    ours, theirs = LISTS[rows]
    router = ReadsAndWrites(*(by_kind[kind] for kind in ARRANGEMENTS[arrangement]))
    renew(server)
    writer = router.writes
    with override_settings(DATABASE_ROUTERS=[router]):
        try:
            async with transaction.atomic(writer):
                assert len([row async for row in ours()]) == 1
        finally:
            await close_threads_connections()
        asked, router.asked = router.asked, []

        def in_block() -> None:
            with transaction.atomic(writer):
                assert len(theirs()) == 1

        in_thread(in_block)
    assert sorted(asked) == sorted(router.asked)


@pytest.mark.parametrize("kind", ["ours", "stock", "off"])
async def test_prefetching_from_an_alias_that_is_not_bridged(
    kind: str, by_kind: dict[str, str], server: Server
) -> None:
    """What is prefetched may be anywhere: by name, by a Prefetch, nested, generic, afterwards."""
    renew(server)
    elsewhere = by_kind[kind]

    class Apart(ReadsAndWrites):
        def db_for_read(self, model: Any, **hints: Any) -> str | None:
            return elsewhere if model in (Book, Tag, Elsewhere) else self.reads

    with override_settings(DATABASE_ROUTERS=[Apart(by_kind["ours"], by_kind["ours"])]):
        try:
            for lookups in (
                ["books"],
                ["reads"],
                [Prefetch("books", Book.objects.using(elsewhere))],
                [Prefetch("books", Book.objects.all(), to_attr="all_books"), "all_books__readers"],
                ["books__readers__books"],
                ["tags"],
                ["tags__target"],
            ):
                found = [each async for each in Author.objects.prefetch_related(*lookups)]
                assert [each.name for each in found] == ["Ada"]
                first = await Author.objects.prefetch_related(*lookups).afirst()
                await aprefetch_related_objects([await Author.objects.aget(pk=1)], *lookups)
                assert first == found[0]
        finally:
            await close_threads_connections()


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
async def test_the_databases_cache_goes_by_the_alias_it_uses(
    arrangement: str, by_kind: dict[str, str]
) -> None:
    """The cache in the database works wherever a router sends its reads and its writes."""
    reads, writes = (by_kind[kind] for kind in ARRANGEMENTS[arrangement])

    class OfCache:
        def db_for_read(self, model: Any, **hints: Any) -> str | None:
            return reads

        def db_for_write(self, model: Any, **hints: Any) -> str | None:
            return writes

    cache = DatabaseCache("cache_table", {})
    with override_settings(DATABASE_ROUTERS=[OfCache()]):
        try:
            await cache.aset("n", 1)
            assert await cache.aget("n") == 1
            assert await cache.aincr("n") == 2
            assert await cache.aget_many(["n"]) == {"n": 2}
            assert await cache.ahas_key("n")
            assert await cache.aget_or_set("m", 5) == 5
            assert await cache.atouch("n")
            assert await cache.aadd("o", 1)
            assert await cache.adelete("n")
            await cache.aclear()
            assert await cache.aget("m") is None
        finally:
            await close_threads_connections()


async def test_the_router_is_asked_as_often_in_the_bridge(server: Server) -> None:
    """In a bridged function an a-method asks the router what its twin asks."""
    router = ReadsAndWrites("default", "default")

    async def both() -> None:
        await Author.objects.acreate(name="b")
        asked, router.asked = router.asked, []
        Author.objects.create(name="c")
        assert sorted(asked) == sorted(router.asked)
        router.asked.clear()
        await Author.objects.aget(name="b")
        asked, router.asked = router.asked, []
        Author.objects.get(name="b")
        assert sorted(asked) == sorted(router.asked)

    with override_settings(DATABASE_ROUTERS=[router]):
        await bridged(both)()


def test_prefetching_twin() -> None:
    """The function that aprefetch_related_objects() hands over is still the one known here."""
    assert prefetch_related_objects.__name__ == "prefetch_related_objects"
