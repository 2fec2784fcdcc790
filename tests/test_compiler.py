"""The ORM on the loop: what Django's own compilers return, without a thread.

Every test fails if a worker thread was started for it.
"""

import asyncio
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import django
import pytest
from asgiref.sync import SyncToAsync
from django.contrib.auth import aget_user, alogin, alogout
from django.contrib.auth.models import Group, Permission, User
from django.contrib.contenttypes.models import ContentType
from django.contrib.sessions.backends.db import SessionStore
from django.core import paginator
from django.core.cache import cache
from django.db import connection, transaction
from django.db.models import Count, F, Max, Prefetch, Q, Sum
from django.db.models.functions import Length, Upper
from django.db.models.query import aprefetch_related_objects
from django.http import Http404
from django.shortcuts import aget_list_or_404, aget_object_or_404
from django.test import RequestFactory
from django.utils import timezone

from pgbackend import bridged
from tests.models import Author, Book, Elsewhere, Tag
from tests.support.books import library, titles
from tests.support.server import Server


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the threads started since: none may be left in the list at the end."""
    # asgiref keeps its thread for later calls: with an executor of the test's own, a call that
    # goes to a thread starts one.
    executor = ThreadPoolExecutor(1)
    monkeypatch.setattr(SyncToAsync, "single_thread_executor", executor)
    started: list[str] = []

    def note(*event: Any) -> None:
        started.append(threading.current_thread().name)
        sys.setprofile(None)

    threading.setprofile(note)
    yield started
    threading.setprofile(None)  # type: ignore[arg-type]  # as documented
    executor.shutdown()
    assert started == []


async def test_aget_returns_the_row() -> None:
    """A row created on the loop is read back on the loop."""
    author = await Author.objects.acreate(name="Ada")
    assert await Author.objects.aget(name="Ada") == author


async def test_the_thread_check_sees_a_thread(threads: list[str]) -> None:
    """The check that every test here relies on notices a call that goes to a thread."""
    await SyncToAsync(lambda: None)()
    assert len(threads) == 1
    threads.clear()


# QuerySet


async def test_async_for() -> None:
    """`async for` over a queryset fetches once and fills its cache."""
    await library()
    books = Book.objects.all()
    assert await titles(books) == ["A1", "A2", "B1"]
    await Book.objects.acreate(title="new")
    assert await titles(books) == ["A1", "A2", "B1"]
    assert [book.title for book in books] == ["A1", "A2", "B1"]


async def test_values_and_values_list() -> None:
    """values(), values_list(), flat and named give their own row shapes."""
    await library()
    books = Book.objects.filter(price__gt=10)
    assert [row async for row in books.values("title", "author__name")] == [
        {"title": "A2", "author__name": "Ada"},
        {"title": "B1", "author__name": "Bea"},
    ]
    assert [row async for row in books.values_list("title", "price")] == [("A2", 15), ("B1", 25)]
    assert [row async for row in books.values_list("price", flat=True)] == [15, 25]
    assert [row.price async for row in books.values_list("price", named=True)] == [15, 25]
    assert await books.values_list("title", flat=True).afirst() == "A2"


async def test_dates() -> None:
    """dates() and datetimes() give dates in order."""
    now = timezone.now().replace(month=3, day=4)
    await Book.objects.acreate(title="x", published=now)
    await Book.objects.acreate(title="y", published=now.replace(month=2))
    found = [date.month async for date in Book.objects.datetimes("published", "month")]
    assert found == [2, 3]
    assert [date.month async for date in Book.objects.dates("published", "month")] == found


async def test_in_bulk_by_field() -> None:
    """ain_bulk() takes ids and a unique field's name."""
    ada, bea = await library()
    assert await Author.objects.ain_bulk([ada.pk]) == {ada.pk: ada}
    assert await Author.objects.ain_bulk(["Bea"], field_name="name") == {"Bea": bea}


async def test_defer_and_only() -> None:
    """A deferred field is loaded by arefresh_from_db(), or bridged when it is read."""
    await library()
    book = await Book.objects.only("price").aget(title="A1")
    assert book.get_deferred_fields() >= {"title", "data"}
    await book.arefresh_from_db(fields=["title"])
    assert book.title == "A1"
    book = await Book.objects.defer("title").aget(price=5)
    assert await bridged(lambda: book.title)() == "A1"


async def test_combinators() -> None:
    """union(), intersection() and difference() of querysets run as one statement."""
    await library()
    cheap, ada = Book.objects.filter(price__lt=20), Book.objects.filter(author__name="Ada")
    bea = Book.objects.filter(author__name="Bea")
    assert await titles(ada.union(bea).order_by("price")) == ["A1", "A2", "B1"]
    assert await titles(ada.intersection(cheap).order_by("price")) == ["A1", "A2"]
    assert await titles(cheap.difference(ada)) == []
    assert await ada.union(bea).acount() == 3


async def test_select_related() -> None:
    """select_related() brings the related instance in the same statement."""
    await library()
    book = await Book.objects.select_related("author").aget(title="B1")
    # Unbridged: a query here would raise.
    assert book.author is not None
    assert book.author.name == "Bea"


async def test_prefetch_related() -> None:
    """prefetch_related() fills the caches, with a Prefetch object's queryset and name."""
    ada, bea = await library()
    await (await Book.objects.aget(title="B1")).readers.aadd(ada)
    cheap = Prefetch("books", Book.objects.filter(price__lt=10), to_attr="cheap")
    authors = [author async for author in Author.objects.prefetch_related(cheap, "reads__author")]
    assert [[book.title for book in author.cheap] for author in authors] == [["A1"], []]
    assert [[book.author for book in author.reads.all()] for author in authors] == [[bea], []]


async def test_aprefetch_related_objects() -> None:
    """aprefetch_related_objects() fills the caches of instances at hand, on their database."""
    ada, bea = await library()
    await aprefetch_related_objects([ada, bea], "books")
    assert [book.title for book in ada.books.all()] == ["A1", "A2"]
    await aprefetch_related_objects([], "books")


async def test_annotate_and_expressions() -> None:
    """annotate(), F, Q and functions are computed by the database."""
    await library()
    authors = (
        Author.objects.annotate(n=Count("books"), most=Max("books__price"), up=Upper("name"))
        .filter(Q(n__gt=1) | Q(name="Bea"))
        .order_by("-most")
    )
    assert [(a.up, a.n, a.most) async for a in authors] == [("BEA", 1, 25), ("ADA", 2, 15)]
    assert await Book.objects.filter(price__gt=F("pk") * 6).acount() == 2
    assert await Book.objects.values("author").annotate(n=Count("pk")).aaggregate(Max("n")) == {
        "n__max": 2
    }


async def test_columns_that_only_order_are_trimmed() -> None:
    """Columns a DISTINCT needs for its ORDER BY are not part of the rows."""
    await library()
    books = Book.objects.distinct().order_by(Length("author__name"), "price")
    assert [row async for row in books.values_list("title")] == [("A1",), ("A2",), ("B1",)]
    assert await books.values_list("title").afirst() == ("A1",)
    assert await titles(books) == ["A1", "A2", "B1"]


async def test_extra() -> None:
    """extra(select=...) adds attributes and values."""
    await library()
    books = Book.objects.extra(select={"double": "price * 2"})
    assert [book.double async for book in books] == [10, 30, 50]
    assert [row async for row in books.values_list("double")] == [(10,), (30,), (50,)]


async def test_raw() -> None:
    """A raw queryset is read by `async for`, with parameters, annotations and deferral."""
    await library()
    raw = Book.objects.raw(
        "SELECT id, title, price + 1 AS more FROM tests_book WHERE price > %s ORDER BY id", [10]
    )
    assert [(book.title, book.more) async for book in raw] == [("A2", 16), ("B1", 26)]
    assert [book.title async for book in raw.prefetch_related("readers")] == ["A2", "B1"]


async def test_empty_result_set() -> None:
    """A query that cannot match gives its empty result without a statement."""
    await library()
    none = Book.objects.filter(pk__in=[])
    assert await titles(none) == []
    assert [row async for row in none.values_list("pk")] == []
    assert [book async for book in none.aiterator()] == []
    assert await none.acount() == 0
    assert await none.aexists() is False
    assert await none.afirst() is None
    assert await none.aaggregate(Sum("price"), n=Count("pk")) == {"price__sum": None, "n": 0}
    assert await none.aupdate(price=1) == 0
    assert await none.adelete() == (0, {})
    assert await none.ain_bulk() == {}
    assert await none.union(none).acount() == 0
    with pytest.raises(Book.DoesNotExist):
        await none.aget()
    assert await Book.objects.acount() == 3


async def test_aget_errors() -> None:
    """aget() raises DoesNotExist and MultipleObjectsReturned."""
    await library()
    with pytest.raises(Book.DoesNotExist):
        await Book.objects.aget(title="nothing")
    with pytest.raises(Book.MultipleObjectsReturned):
        await Book.objects.aget(author__name="Ada")


async def test_select_for_update(server: Server) -> None:
    """select_for_update() locks the rows until the transaction ends."""
    await library()
    locked = "SELECT count(*) FROM (SELECT 1 FROM tests_book FOR UPDATE SKIP LOCKED) AS free"
    async with transaction.atomic():
        assert await titles(Book.objects.filter(price__lt=20).select_for_update()) == ["A1", "A2"]
        assert server.one(locked) == 1
    assert server.one(locked) == 3


async def test_bulk_create() -> None:
    """abulk_create() sets primary keys, in one batch and in several."""
    for size in (None, 2):
        books = [Book(title=f"{size} {n}", data={"n": n}) for n in range(5)]
        await Book.objects.abulk_create(books, batch_size=size)
        assert all(book.pk for book in books)
        found = [
            (book.pk, book.data) async for book in Book.objects.filter(title__startswith=f"{size} ")
        ]
        assert found == [(book.pk, {"n": n}) for n, book in enumerate(books)]


async def test_bulk_create_conflicts() -> None:
    """abulk_create() ignores or updates rows that conflict, as asked."""
    ada = await Author.objects.acreate(name="Ada")
    await Author.objects.abulk_create(
        [Author(name="Ada"), Author(name="Bea")], ignore_conflicts=True
    )
    assert await Author.objects.acount() == 2
    await Author.objects.abulk_create(
        [Author(pk=ada.pk, name="Ada!"), Author(pk=77, name="Cy")],
        update_conflicts=True,
        unique_fields=["pk"],
        update_fields=["name"],
    )
    names = [author.name async for author in Author.objects.order_by("name")]
    assert names == ["Ada!", "Bea", "Cy"]
    await ada.arefresh_from_db()
    assert ada.name == "Ada!"


async def test_insert_returns_converted_fields() -> None:
    """An insert returns the database's values, converted, also for several rows."""
    first = await Book.objects.acreate(title="x", data={"a": [1]}, published=timezone.now())
    assert isinstance(first.pk, int)
    found = await Book.objects.aget()
    assert (found.data, found.published) == (first.data, first.published)


async def test_update_of_several_tables() -> None:
    """A filter over a relation decides an update and a delete."""
    await library()
    assert await Book.objects.filter(author__name="Ada").aupdate(price=1) == 2
    assert await Author.objects.filter(books__title="B1").adelete() == (
        2,
        {"tests.Author": 1, "tests.Book": 1},
    )
    assert await titles(Book.objects.all()) == ["A1", "A2"]


async def test_get_or_create_race() -> None:
    """Twenty tasks at once create one row."""
    results = await asyncio.gather(*(Author.objects.aget_or_create(name="Ada") for _ in range(20)))
    assert [created for _, created in results].count(True) == 1
    assert len({author.pk for author, _ in results}) == 1
    assert await Author.objects.acount() == 1


async def test_second_database() -> None:
    """a-methods follow the router, using() and `using=` to the second database."""
    one = await Elsewhere.objects.acreate(name="x")
    one.name = "y"
    await one.asave()
    assert await Elsewhere.objects.using("other").acount() == 1
    assert [each.name async for each in Elsewhere.objects.all()] == ["y"]
    author = Author(name="Ada")
    await author.asave(using="default")
    await one.adelete(using="other")
    assert await Elsewhere.objects.acount() == 0


# The project's own overrides


async def test_save_override_is_honoured() -> None:
    """asave(), acreate() and aupdate_or_create() call the model's own save()."""
    book = Book(title="  x ")
    await book.asave()
    assert (book.saves, book.title) == (1, "x")
    book = await Book.objects.acreate(title=" y ")
    assert (book.saves, book.title) == (1, "y")
    book, _ = await Book.objects.aupdate_or_create(pk=book.pk, defaults={"title": " z "})
    assert (book.saves, book.title) == (1, "z")
    book, _ = await Book.objects.aget_or_create(title="n")
    assert book.saves == 1


async def test_delete_override_is_honoured() -> None:
    """adelete() of a queryset calls the project's own delete()."""
    await Book.objects.acreate(title="here")
    await Book.objects.acreate(title="away", on_loan=True)
    assert await Book.objects.all().adelete() == (1, {"tests.Book": 1})
    assert await titles(Book.objects.all()) == ["away"]
    assert await Book.objects.all().cheap().acount() == 1


# Model


async def test_model() -> None:
    """asave(), arefresh_from_db() and adelete() of an instance."""
    author = Author(name="Ada")
    await author.asave()
    same = await Author.objects.aget()
    author.name = "Bea"
    await author.asave(update_fields=["name"])
    await same.arefresh_from_db()
    assert same.name == "Bea"
    assert await author.adelete() == (1, {"tests.Author": 1})
    with pytest.raises(Author.DoesNotExist):
        await same.arefresh_from_db()


# Related managers


async def test_forward_relation() -> None:
    """A forward relation is loaded bridged, and refused on the loop outside."""
    await library()
    book = await Book.objects.aget(title="A1")
    assert str(await bridged(lambda: book.author)()) == "Ada"


async def test_reverse_foreign_key() -> None:
    """Every a-method of a reverse foreign key's manager."""
    ada, bea = await library()
    assert await ada.books.acount() == 2
    assert (await ada.books.acreate(title="A3")).author == ada
    assert (await ada.books.aget_or_create(title="A3"))[1] is False
    assert (await ada.books.aupdate_or_create(title="A3", defaults={"price": 9}))[0].price == 9
    b1 = await bea.books.aget()
    await ada.books.aadd(b1)
    assert await titles(ada.books.all()) == ["A1", "A2", "B1", "A3"]
    await ada.books.aremove(b1)
    assert await bea.books.acount() == 0
    await bea.books.aset([b1])
    assert await titles(bea.books.all()) == ["B1"]
    await ada.books.aclear()
    assert await ada.books.aexists() is False


async def test_many_to_many() -> None:
    """Every a-method of a many-to-many manager, from both sides."""
    ada, bea = await library()
    book = await Book.objects.aget(title="A1")
    await book.readers.aadd(ada, bea)
    assert [each.name async for each in book.readers.order_by("name")] == ["Ada", "Bea"]
    await book.readers.aremove(ada)
    cy = await book.readers.acreate(name="Cy")
    assert (await book.readers.aget_or_create(name="Cy"))[1] is False
    dan, created = await book.readers.aupdate_or_create(name="Dan")
    assert created
    assert await book.readers.acount() == 3
    await book.readers.aset([cy, ada])
    assert {each.name async for each in book.readers.all()} == {"Cy", "Ada"}
    assert await titles(dan.reads.all()) == []
    await cy.reads.aclear()
    assert await book.readers.aget() == ada
    assert await ada.reads.afirst() == book


async def test_generic_relation() -> None:
    """Every a-method of a generic relation's manager, and the way back."""
    ada, bea = await library()
    # As with stock Django the manager itself looks the content type up, until it is cached.
    await bridged(ContentType.objects.get_for_model)(Author)
    tag = await ada.tags.acreate(name="poet")
    assert await bridged(lambda: tag.target)() == ada
    assert (await ada.tags.aget_or_create(name="poet"))[1] is False
    assert (await ada.tags.aupdate_or_create(name="lady"))[1] is True
    await bea.tags.aadd(tag)
    assert [each.name async for each in bea.tags.all()] == ["poet"]
    await bea.tags.aset([tag, await Tag.objects.aget(name="lady")])
    assert await bea.tags.acount() == 2
    await bea.tags.aremove(tag)
    assert await Tag.objects.acount() == 1
    await bea.tags.aclear()
    assert await Tag.objects.acount() == 0


# Shortcuts, sessions, auth, cache, paginator


async def test_shortcuts() -> None:
    """aget_object_or_404() and aget_list_or_404() find or raise Http404."""
    await library()
    assert (await aget_object_or_404(Book, title="A1")).price == 5
    assert len(await aget_list_or_404(Book, author__name="Ada")) == 2
    with pytest.raises(Http404):
        await aget_object_or_404(Book, title="nothing")
    with pytest.raises(Http404):
        await aget_list_or_404(Book, title="nothing")


async def test_sessions() -> None:
    """A session in the database is saved, loaded, given a new key and deleted."""
    session = SessionStore()
    await session.aset("a", 1)
    await session.asave()
    key = session.session_key
    again = SessionStore(key)
    assert await again.aexists(key)
    assert await again.aload() == {"a": 1}
    assert await again.aget("a") == 1
    await again.aupdate({"b": 2})
    assert await again.apop("a") == 1
    assert list(await again.akeys()) == ["b"]
    await again.acycle_key()
    assert again.session_key != key
    assert not await again.aexists(key)
    fresh = SessionStore()
    await fresh.acreate()
    assert await fresh.aexists(fresh.session_key)
    await fresh.aflush()
    assert fresh.session_key is None
    await SessionStore().adelete(again.session_key)
    await SessionStore.aclear_expired()
    assert await SessionStore().aexists(again.session_key) is False


async def test_users_and_permissions() -> None:
    """acreate_user(), permissions of users and groups."""
    user = await User.objects.acreate_user("ada", "ada@example.com", None)
    assert await User.objects.aget_by_natural_key("ada") == user
    kind = await bridged(ContentType.objects.get_for_model)(Book)
    own = await Permission.objects.acreate(codename="lend", content_type=kind)
    shared = await Permission.objects.acreate(codename="shelve", content_type=kind)
    group = await Group.objects.acreate(name="staff")
    await group.permissions.aadd(shared)
    await user.groups.aadd(group)
    await user.user_permissions.aadd(own)
    user = await User.objects.aget()
    assert await user.ahas_perm("tests.lend")
    assert await user.ahas_perms(["tests.lend", "tests.shelve"])
    assert not await user.ahas_perm("tests.burn")
    assert await user.ahas_module_perms("tests")
    assert await user.aget_group_permissions() == {"tests.shelve"}
    assert await user.aget_user_permissions() == {"tests.lend"}
    assert await user.aget_all_permissions() == {"tests.lend", "tests.shelve"}


async def test_login_and_logout() -> None:
    """alogin() and alogout() of a request with a session in the database."""
    user = await User.objects.acreate_user("ada")
    request = RequestFactory().get("/")
    request.session = SessionStore()
    await alogin(request, user, backend="django.contrib.auth.backends.ModelBackend")
    await request.session.asave()
    await user.arefresh_from_db()
    assert user.last_login is not None
    request.session = SessionStore(request.session.session_key)
    assert await aget_user(request) == user
    await alogout(request)
    assert (await aget_user(request)).is_anonymous


async def test_database_cache() -> None:
    """Every a-method of the database cache."""
    await cache.aset("a", 1)
    assert await cache.aget("a") == 1
    assert await cache.aget("nothing", 7) == 7
    assert await cache.aadd("a", 2) is False
    assert await cache.aincr("a", 4) == 5
    assert await cache.adecr("a") == 4
    assert await cache.ahas_key("a")
    assert await cache.atouch("a", 100)
    assert await cache.aset_many({"b": 2, "c": 3}) == []
    assert await cache.aget_many(["a", "b", "x"]) == {"a": 4, "b": 2}
    assert await cache.aget_or_set("d", lambda: 9) == 9
    assert await cache.aincr_version("d") == 2
    assert await cache.adecr_version("d", version=2) == 1
    assert await cache.adelete("d")
    await cache.adelete_many(["b"])
    assert await cache.aget("b") is None
    await cache.aclear()
    assert await cache.aget("a") is None
    await cache.aclose()


async def test_paginator_bridged() -> None:
    """Django's Paginator works in a bridged function."""
    await library()

    @bridged
    def page() -> tuple[int, list[str], bool]:
        pages = paginator.Paginator(Book.objects.all(), 2)
        first = pages.page(1)
        return pages.count, [book.title for book in first], first.has_next()

    assert await page() == (3, ["A1", "A2"], True)


@pytest.mark.skipif(django.VERSION < (6, 0), reason="AsyncPaginator is new in Django 6.0")
async def test_async_paginator() -> None:
    """Django's AsyncPaginator awaits its counts and pages on the loop."""
    await library()
    pages = paginator.AsyncPaginator(Book.objects.all(), 2)
    assert await pages.acount() == 3
    assert await pages.anum_pages() == 2
    last = await pages.apage(2)
    assert [book.title async for book in last] == ["B1"]
    assert await last.ahas_previous()
    assert not await last.ahas_next()


async def test_connection_is_not_kept(server: Server) -> None:
    """No kind of statement leaves its connection on loan."""
    await library()
    await asyncio.gather(*(Book.objects.acount() for _ in range(50)))
    assert await Book.objects.afirst() is not None
    # default's max_size
    assert server.backends() <= 8
    assert connection.connection is None
