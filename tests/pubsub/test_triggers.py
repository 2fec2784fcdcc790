"""Triggers: what they send of a row, and that they never stop the statement of the user."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from functools import partial

import pgtrigger
import pytest
from django.db import connection, transaction

from pgbackend.pubsub import (
    Notification,
    PayloadError,
    PubsubError,
    TriggerChannel,
    register_triggers,
    registry,
)
from pgbackend.pubsub.channels import BaseChannel, select
from pgbackend.pubsub.installed import triggers_amiss, warn_of_triggers
from pgbackend.pubsub.payload import decode
from pgbackend.pubsub.triggers import Notify
from pgbackend.pubsub.worker import Worker
from tests.support.server import Server

from .ear import Ear
from .site.channels import AuthorPlain, AuthorStored, PostStored
from .site.listeners import after_insert, before_delete
from .site.models import Author, Child, Kinds, Line, Post


@pytest.fixture
def ear(server: Server) -> Iterator[Ear]:
    ear = Ear(server.dsn, AuthorPlain, AuthorStored, PostStored)
    yield ear
    ear.conn.close()


def received(ear: Ear, channel: type[BaseChannel]) -> list[BaseChannel]:
    """Return the plain notifications of *channel* that were sent since the last call."""
    name = channel.listen_name()
    return [decode(channel, text) for heard, text in ear.heard() if heard == name]


def stored(channel: type[BaseChannel]) -> list[BaseChannel]:
    """Return the stored notifications of *channel*."""
    return [decode(channel, row.payload) for row in Notification.from_channel(channel)]


def test_insert(ear: Ear) -> None:
    """An INSERT sends the new row, as an instance of the model, and says what it was."""
    author = Author.objects.create(name="Ann", alternative="B", rating=Decimal("1.00000000000001"))
    (sent,) = received(ear, AuthorPlain)
    assert isinstance(sent, AuthorPlain)
    assert (sent.old, sent.new) == (None, author)
    assert (sent.operation, sent.when) == ("INSERT", "AFTER")
    assert sent.new.alternative == "B"
    assert sent.new.rating == author.rating
    assert not sent.new._state.adding
    assert [each.callback for each in sent.listeners] == [after_insert]


def test_update() -> None:
    """An UPDATE sends both rows; digits of a numeric column survive the row of the table."""
    rating = Decimal("12345678901234567890.12345678901234567890")
    author = Author.objects.create(name="Ann", rating=rating)
    author.name = "Bob"
    author.save()
    inserted, updated = stored(AuthorStored)
    assert isinstance(updated, AuthorStored)
    assert isinstance(inserted, AuthorStored)
    assert (inserted.operation, updated.operation) == ("INSERT", "UPDATE")
    assert (updated.old.name, updated.new.name) == ("Ann", "Bob")  # type: ignore[union-attr]
    assert updated.new.rating == rating  # type: ignore[union-attr]


def test_before_delete_lets_the_row_go(ear: Ear) -> None:
    """A trigger before a DELETE returns the old row: the DELETE happens."""
    Author.objects.create(name="Ann").delete()
    assert Author.objects.count() == 0
    _, deleted = received(ear, AuthorPlain)
    assert isinstance(deleted, AuthorPlain)
    assert (deleted.operation, deleted.when, deleted.new) == ("DELETE", "BEFORE", None)
    assert deleted.old.name == "Ann"  # type: ignore[union-attr]
    assert [each.callback for each in deleted.listeners] == [before_delete]


def test_long_rows(ear: Ear) -> None:
    """A row that is too long for NOTIFY goes through the table: the INSERT does not fail."""
    Author.objects.create(name="x" * 20_000)
    plain = Notification.objects.get(state="plain")
    assert {text for _, text in ear.heard()} == {"#", f"@{plain.pk}"}
    assert plain.channel == AuthorPlain.listen_name()
    assert len(decode(AuthorPlain, plain.payload).new.name) == 20_000  # type: ignore[union-attr]


def test_one_notify_for_many_rows(ear: Ear) -> None:
    """A stored channel wakes its listeners once for a transaction, however many rows it has."""
    Author.objects.bulk_create(Author(name=str(n)) for n in range(50))
    name = AuthorStored.listen_name()
    assert [text for heard, text in ear.heard() if heard == name] == ["#"]
    assert len(stored(AuthorStored)) == 50


def test_order_key() -> None:
    """The row has the value by which its channel is ordered."""
    author = Author.objects.create(name="Ann")
    Post.objects.create(author=author, content="x").delete()
    assert Notification.from_channel(PostStored).get().order_key == str(author.pk)


def test_version_of_the_tables() -> None:
    """A row of a trigger has the last migration of its application; one of notify has none."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass('django_migrations')")
        assert cursor.fetchone() != (None,)
        cursor.execute(
            "INSERT INTO django_migrations (app, name, applied)"
            " VALUES ('pubsub_site', '0001', now()) RETURNING id"
        )
        (version,) = cursor.fetchone()
    try:
        Author.objects.create(name="Ann")
        assert Notification.objects.get().db_version == version
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DELETE FROM django_migrations WHERE id = %s", [version])


def test_kinds_of_columns() -> None:
    """Each kind of column comes back as the ORM loads it."""
    row = Kinds.make()
    row.refresh_from_db()
    (sent,) = stored(Kinds.channel())
    assert isinstance(sent, TriggerChannel)
    for field in Kinds._meta.concrete_fields:
        expected = getattr(row, field.attname)
        got = getattr(sent.new, field.attname)
        if isinstance(expected, memoryview):
            expected = bytes(expected)
        assert (got, type(got)) == (expected, type(expected)), field.name


def test_rows_of_a_child_table() -> None:
    """A child's trigger sees its own table: the parent's key is that of the link."""
    child = Child.objects.create(name="Ann", age=5)
    (sent,) = stored(Child.channel())
    assert isinstance(sent, TriggerChannel)
    assert isinstance(sent.new, Child)
    assert (sent.new.pk, sent.new.author_ptr_id, sent.new.id) == (child.pk,) * 3
    assert sent.new.age == 5


def test_key_of_two_columns() -> None:
    """A row whose key has several columns is an instance with that key."""
    author = Author.objects.create(name="Ann")
    line = Line.objects.create(author=author, number=3)
    (sent,) = stored(Line.channel())
    assert isinstance(sent, TriggerChannel)
    assert (sent.new, sent.new.pk) == (line, (author.pk, 3))  # type: ignore[union-attr]


def payload_of(**columns: object) -> str:
    row = {"id": 1, "name": "Ann", **columns}
    return json.dumps({"app": "pubsub_site", "model": "Author", "old": None, "new": row})


def test_schema_has_changed() -> None:
    """Columns that are gone are left out, and new fields have their defaults."""
    sent = decode(AuthorStored, payload_of(gone=5))
    assert sent.new.alternative is None  # type: ignore[union-attr]
    assert not hasattr(sent.new, "gone")


def test_django_pgpubsubs_payload() -> None:
    """A payload without an operation says by its rows what it was."""
    row = {"id": 1, "name": "Ann"}
    for old, new, operation in [(None, row, "INSERT"), (row, row, "UPDATE"), (row, None, "DELETE")]:
        data = {"app": "pubsub_site", "model": "Author", "old": old, "new": new}
        sent = decode(AuthorPlain, json.dumps(data))
        assert (sent.operation, sent.when) == (operation, None)
        names = [each.callback.__name__ for each in sent.listeners]
        assert names == {"INSERT": ["after_insert"], "DELETE": ["before_delete"]}.get(operation, [])


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ("{}", "has no 'app'"),
        ('{"app": "pubsub_site", "model": "Gone", "old": null, "new": {}}', "of another table"),
        ('{"app": "pubsub_site", "model": "Author", "old": null}', "has no 'new'"),
        (payload_of(rating="x"), r"new\.rating does not fit pubsub_site\.Author\.rating"),
        (
            '{"app": "pubsub_site", "model": "Author", "old": null, "new": {"name": "x"}}',
            "has no column 'id', the primary key of pubsub_site.Author",
        ),
    ],
)
def test_misfits(payload: str, message: str) -> None:
    """A payload that does not fit the table is an error that says what."""
    with pytest.raises(PayloadError, match=r"The payload of \S+AuthorStored.*" + message):
        decode(AuthorStored, payload)


def test_own_trigger(ear: Ear) -> None:
    """A trigger of the project's own may have a condition and several operations."""

    @dataclass
    class Renamed(TriggerChannel):
        model = Author

    trigger = Notify(
        name=Renamed.listen_safe_name(),
        channel=Renamed,
        when=pgtrigger.After,
        operation=pgtrigger.Update | pgtrigger.Delete,
        condition=pgtrigger.Q(old__name="Ann"),
    )
    ear.conn.execute(f"LISTEN {Renamed.listen_name()}".encode())
    with transaction.atomic():
        trigger.install(Author)
    try:
        for name in ("Ann", "Bob"):
            author = Author.objects.create(name=name)
            author.save()
            author.delete()
    finally:
        trigger.uninstall(Author)
    assert [each.operation for each in received(ear, Renamed)] == ["UPDATE", "DELETE"]


ALTER = "ALTER TABLE {{t}} {} TRIGGER {{n}}"


def test_amiss() -> None:
    """Triggers that are not in the database, disabled or outdated are told by their class."""
    assert triggers_amiss("default") == []
    for when, statement, restore in [
        (
            "is disabled",
            "ALTER TABLE {t} DISABLE TRIGGER {n}",
            "ALTER TABLE {t} ENABLE TRIGGER {n}",
        ),
        ("is not as the code", "COMMENT ON TRIGGER {n} ON {t} IS 'other'", None),
        ("is not in the database: nothing is sent", "DROP TRIGGER {n} ON {t}", None),
    ]:
        ((model, trigger),) = [
            (model, each)
            for model, each in pgtrigger.registered()
            if getattr(each, "channel", None) is PostStored
        ]
        names = {"t": model._meta.db_table, "n": trigger.get_pgid(model)}
        with connection.cursor() as cursor:
            cursor.execute(statement.format(**names))
        try:
            ((channel, message),) = triggers_amiss("default")
            assert channel is PostStored
            assert "PostStored for DELETE of pubsub_site.Post " + when in message
            assert triggers_amiss("default", [AuthorPlain]) == []
        finally:
            if restore:
                with connection.cursor() as cursor:
                    cursor.execute(restore.format(**names))
            else:
                trigger.install(model)
    assert triggers_amiss("default") == []


# Connections that have asked for triggers, and nothing since.
ASKS_FOR_TRIGGERS = """
SELECT count(*) FROM pg_stat_activity
WHERE query LIKE 'SELECT tgname%' AND pid <> pg_backend_pid()
"""


def test_warning(caplog: pytest.LogCaptureFixture, server: Server) -> None:
    """`listen` warns of triggers that are not there, and keeps no connection for that."""
    (trigger,) = [
        each for _, each in pgtrigger.registered() if getattr(each, "channel", None) is PostStored
    ]
    trigger.uninstall(Post)
    try:
        warn_of_triggers(select(None))
    finally:
        trigger.install(Post)
    assert [each.getMessage() for each in caplog.records] == [
        f"The trigger of {PostStored.name()} for DELETE of pubsub_site.Post is not in the database:"
        " nothing is sent. Run makemigrations and migrate."
    ]
    caplog.clear()
    warn_of_triggers(select(None))
    assert caplog.records == []
    # A closed socket's backend takes a moment to notice.
    for _ in range(1000):
        if server.one(ASKS_FOR_TRIGGERS) == 0:
            break
        server.all("SELECT pg_sleep(0.01)")
    assert server.one(ASKS_FOR_TRIGGERS) == 0


async def test_ignored_triggers() -> None:
    """A task that ignores a trigger does so alone: another one's row is sent meanwhile."""
    (uri,) = [
        trigger.get_uri(model)
        for model, trigger in pgtrigger.registered()
        if getattr(trigger, "channel", None) is AuthorStored and "insert" in trigger.name
    ]
    ignoring, done = asyncio.Event(), asyncio.Event()

    async def ignore() -> None:
        with pgtrigger.ignore(uri):
            await Author.objects.acreate(name="ignored first")
            ignoring.set()
            await done.wait()
            await Author.objects.acreate(name="ignored")

    async def write() -> None:
        await ignoring.wait()
        await Author.objects.acreate(name="sent")
        done.set()

    await asyncio.gather(ignore(), write())
    await Author.objects.acreate(name="sent after")
    rows = Notification.from_channel(AuthorStored).order_by("pk")
    assert [row.payload["new"]["name"] async for row in rows] == ["sent", "sent after"]


def note(called: list[str], heard: str, **kwargs: object) -> None:
    called.append(heard)


@pytest.mark.parametrize("channel", [AuthorStored, PostStored])
@pytest.mark.parametrize("old_form", [False, True])
async def test_two_versions(channel: type[TriggerChannel], old_form: bool) -> None:
    """A row of an operation that only the other version's listeners hear is left to them."""
    # By the author, of PostStored.
    model, key = channel.model, None if channel is AuthorStored else "1"
    row = {"id": 1, "name": "Ann", "author_id": 1, "content": "x"}
    hears = "UPDATE" if channel is AuthorStored else "DELETE"
    for operation, old, new in [("INSERT", None, row), ("UPDATE", row, row), ("DELETE", row, None)]:
        payload = {"app": model._meta.app_label, "model": model.__name__, "old": old, "new": new}
        if not old_form:
            payload |= {"operation": operation, "when": "BEFORE"}
        name = channel.listen_name()
        await Notification.objects.acreate(channel=name, payload=payload, order_key=key)
    called: list[str] = []
    before = registry.listeners[channel]
    try:
        for heard in (hears, "INSERT"):
            registry.listeners[channel] = []
            callback = partial(note, called, heard)
            registry.register(channel, callback, frozenset({f"BEFORE {heard}"}))
            worker = Worker([channel])
            await worker.run(batch=True)
            assert await worker.stop()
            assert called[-1] == heard
    finally:
        registry.listeners[channel] = before
    assert called == [hears, "INSERT"]
    (left,) = [each async for each in Notification.objects.all()]
    assert (left.state, left.attempts) == ("ready", 0)


@dataclass
class Remote(TriggerChannel):
    """A channel whose listeners are elsewhere."""

    model = Child


def test_triggers_without_a_listener() -> None:
    """Code that has the models alone registers their triggers."""
    register_triggers(Remote, "AFTER INSERT", "BEFORE DELETE")
    register_triggers(Remote, "AFTER INSERT")
    found = [each for _, each in pgtrigger.registered() if getattr(each, "channel", 0) is Remote]
    try:
        assert [each.name.split("_", 2)[2] for each in found] == ["after_insert", "before_delete"]
        assert not Remote.registered_listeners()
        with pytest.raises(PubsubError, match="'UPDATE' is no operation"):
            register_triggers(Remote, "UPDATE")
    finally:
        for each in found:
            each.unregister(Child)
