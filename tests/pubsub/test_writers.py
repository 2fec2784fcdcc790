"""Triggers in the sessions of those who write: whatever they have set, and with few rights."""

import datetime
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pgtrigger
import psycopg
import pytest
from django.db import connection, transaction
from django.test import override_settings

from pgbackend import bridged
from pgbackend.pubsub import Notification, TriggerChannel, anotify_many, asend
from pgbackend.pubsub.payload import decode
from pgbackend.pubsub.upkeep import health, prune, requeue, stats
from tests.support.pubsub import until, working
from tests.support.server import DATABASES, Server

from .ear import Ear
from .site import jobs
from .site.channels import AuthorPlain, AuthorStored, KindsStored
from .site.models import Author, Kinds

SETTINGS = [
    "IntervalStyle = 'sql_standard'",
    "IntervalStyle = 'iso_8601'",
    "IntervalStyle = 'postgres_verbose'",
    "bytea_output = 'escape'",
    "extra_float_digits = -15",
    "DateStyle = 'SQL, DMY'",
    "DateStyle = 'German'",
    "DateStyle = 'Postgres'",
    "TimeZone = 'Asia/Kathmandu'",
    "search_path = ''",
    "search_path = tenant, public",
    "search_path = pg_temp, public",
]


@pytest.fixture
def tenant(server: Server) -> Iterator[None]:
    """A schema that has a table of the same name as that of notifications."""
    table = "CREATE TABLE tenant.pgpubsub_notification (LIKE public.pgpubsub_notification)"
    with psycopg.connect(server.dsn, dbname=DATABASES[0], autocommit=True) as conn:
        conn.execute("CREATE SCHEMA tenant")
        conn.execute(table)
        yield
        conn.execute("DROP SCHEMA tenant CASCADE")


@pytest.fixture
def writer(server: Server, tenant: None) -> Iterator[Any]:
    """A connection of no Django."""
    with psycopg.connect(server.dsn, dbname=DATABASES[0], autocommit=True) as conn:
        yield conn


def apply(conn: Any, setting: str) -> None:
    """Have the session of *conn* such a setting."""
    if "pg_temp" in setting:
        table = "CREATE TEMP TABLE pgpubsub_notification (LIKE public.pgpubsub_notification)"
        conn.execute(table)
    conn.execute(f"SET {setting}")


def columns_of(table: str) -> str:
    """Return the names of all columns that have values to copy, and the key is none of them."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT string_agg(quote_ident(attname), ', ') FROM pg_attribute"
            " WHERE attrelid = %s::regclass AND attnum > 0 AND attgenerated = ''"
            " AND attname <> 'id' AND NOT attisdropped",
            [table],
        )
        (names,) = cursor.fetchone()
        return str(names)


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings(setting: str, writer: Any, server: Server) -> None:
    """No setting of the session changes what the trigger of a table stores, or where."""
    Kinds.objects.create(real=1 / 3)
    columns = columns_of("pubsub_site_kinds")
    apply(writer, setting)
    copy = f"INSERT INTO public.pubsub_site_kinds ({columns}) SELECT {columns}"
    writer.execute(f"{copy} FROM public.pubsub_site_kinds")
    first, second = Notification.from_channel(KindsStored)
    sent = decode(KindsStored, second.payload)
    assert isinstance(sent, TriggerChannel)
    row = Kinds.objects.get(pk=second.payload["new"]["id"])
    for field in Kinds._meta.concrete_fields:
        expected, got = getattr(row, field.attname), getattr(sent.new, field.attname)
        if isinstance(expected, memoryview):
            expected = bytes(expected)
        assert (got, type(got)) == (expected, type(expected)), field.name
    # The session has made two of the values itself.
    for each in (first, second):
        del each.payload["new"]["id"], each.payload["new"]["later"]
    assert first.payload == second.payload


@pytest.mark.parametrize("setting", SETTINGS[-3:])
def test_long_rows(setting: str, writer: Any, server: Server) -> None:
    """A row that is too long for NOTIFY finds the table, too."""
    ear = Ear(server.dsn, AuthorPlain)
    try:
        apply(writer, setting)
        writer.execute("INSERT INTO public.pubsub_site_author (name) VALUES (repeat('x', 9000))")
        (plain,) = Notification.objects.filter(state="plain")
        assert [text for _, text in ear.heard()] == [f"@{plain.pk}"]
    finally:
        ear.conn.close()
    # The path is the session's own afterwards.
    (path,) = writer.execute("SHOW search_path").fetchone()
    assert path == setting.partition(" = ")[2].replace("''", '""')


def test_path() -> None:
    """The path is that of the migration, with the table's schema first, and each once."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT DISTINCT proconfig[1] FROM pg_proc WHERE proname ~ '^pgtrigger_pg'")
        assert cursor.fetchall() == [("search_path=public, pg_temp",)]


def test_trigger_before_the_table(tenant: None) -> None:
    """A trigger of migrations that ran before those of the table finds it, as it did."""
    (trigger,) = [
        each
        for _, each in pgtrigger.registered()
        if getattr(each, "channel", None) is AuthorStored and "insert" in each.name
    ]
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("ALTER TABLE public.pgpubsub_notification RENAME TO later")
        trigger.install(Author)
        cursor.execute("ALTER TABLE public.later RENAME TO pgpubsub_notification")
        cursor.execute("SET LOCAL search_path = ''")
        cursor.execute("INSERT INTO public.pubsub_site_author (name) VALUES ('Ann')")
        cursor.execute("SET LOCAL search_path = public")
        assert Notification.from_channel(AuthorStored).count() == 1
        transaction.set_rollback(True)


def test_without_zones() -> None:
    """Where USE_TZ is off, times have no zone, as the ORM loads them."""
    with override_settings(USE_TZ=False, TIME_ZONE="Asia/Kathmandu"):
        row = Kinds.objects.create(moment=datetime.datetime(2026, 1, 2, 3, 4, 5, 6))
        row.refresh_from_db()
        (stored,) = Notification.from_channel(KindsStored)
        sent = decode(KindsStored, stored.payload)
        assert isinstance(sent, TriggerChannel)
        for name in ("moment", "later"):
            assert getattr(sent.new, name) == getattr(row, name), name


def test_restored_rows(writer: Any) -> None:
    """Rows of the table itself are restored by pg_restore, which empties the search path."""
    payload = json.dumps({"app": "gone", "model": "Gone", "old": None, "new": {}})
    writer.execute("SET search_path = ''")
    insert = "INSERT INTO public.pgpubsub_notification (channel, payload) VALUES ('gone', %s)"
    writer.execute(insert, [payload])
    assert Notification.objects.get().db_version is None


# What the page about roles grants.
PAGE = Path(__file__).parents[2] / "docs/howto/pubsub-roles.md"

# What is the application's own.
OWN = """
GRANT INSERT, SELECT ON pubsub_site_author TO shop;
GRANT USAGE ON SEQUENCE pubsub_site_author_id_seq TO shop;
"""


@pytest.fixture
def roles(server: Server) -> Iterator[None]:
    """The roles of that page, with the rights that it grants and no others."""
    granted = re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.DOTALL)
    with psycopg.connect(server.dsn, dbname=DATABASES[0], autocommit=True) as conn:
        conn.execute("CREATE ROLE shop; CREATE ROLE worker")
        try:
            for statements in (*granted, OWN):
                conn.execute(statements)
            yield
        finally:
            conn.execute("DROP OWNED BY shop, worker; DROP ROLE shop, worker")


async def test_roles(
    roles: None, add_alias: Callable[..., str], monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    """Roles with the rights of the page send, and handle."""
    shop, worker = add_alias({"assume_role": "shop"}), add_alias({"assume_role": "worker"})
    ear = Ear(server.dsn, AuthorPlain, jobs.Plain)
    await jobs_of(shop)
    assert len(ear.heard()) == 4
    ear.conn.close()
    assert await Notification.objects.filter(state="plain").acount() == 2
    for channel in (jobs.Stored, jobs.Leased, jobs.Ordered, AuthorStored, jobs.Plain):
        monkeypatch.setattr(channel, "using", worker)
    stored = (jobs.Stored, jobs.Leased, jobs.Ordered, AuthorStored)
    rows = Notification.objects.exclude(state="plain")
    async with working(*stored, jobs.Plain):
        await asend(jobs.Plain(5, key="x" * 9000), using=shop)
        await until(lambda: 5 in jobs.called)
        await until(lambda: nothing(rows))
    row = await asend(jobs.Once(6, "fail"), using=shop)
    monkeypatch.setattr(jobs.Once, "using", worker)
    async with working(jobs.Once) as at_work:
        await until(lambda: at_work.progress.counts["dead"])
    assert await bridged(requeue)(worker, None, [row]) == 1
    assert await bridged(prune)(worker, None, datetime.timedelta(0)) == 0
    assert (await bridged(health)(worker, None, None))["dead"] == 0
    assert len(await bridged(stats)(worker)) == 3


async def nothing(rows: Any) -> bool:
    return not await rows.aexists()


async def jobs_of(alias: str) -> None:
    """Send by *alias* in all ways."""
    await asend(jobs.Stored(1), using=alias)
    await anotify_many([jobs.Stored(2), jobs.Ordered(3, key="a")], using=alias)
    await asend(jobs.Stored(7, "fail-until 2"), using=alias)
    await asend(jobs.Leased(4), using=alias, run_after=datetime.timedelta(0))
    await asend(jobs.Plain(8, key="x" * 9000), using=alias)
    await asend(jobs.Plain(9), using=alias)
    authors = Author.objects.using(alias)
    for name in ("Ann", "x" * 9000):
        await authors.acreate(name=name)
