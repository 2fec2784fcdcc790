"""The state that a session was configured with, made again after its reset."""

from __future__ import annotations

from typing import Any

from django.db.backends.signals import connection_created

from pgbackend import bridged
from pgbackend.transaction import pinned
from tests.support.session import run
from tests.support.wrapper import AddAlias


async def test_what_connecting_set_up_is_kept(add_alias: AddAlias) -> None:
    """A reset ends where connection_created left the session, own settings and role included."""

    def set_up(connection: Any, **kwargs: Any) -> None:
        if connection.alias == alias:
            with connection.cursor() as cursor:
                cursor.execute("SET work_mem = '33MB'")
                cursor.execute("SELECT set_config(%s, 'it''s', false)", ["app.name"])
                cursor.execute("SET app.other TO 'b'")

    alias = add_alias(
        {"pool": {"max_size": 1}, "assume_role": "pg_monitor"}, TIME_ZONE="Asia/Tokyo"
    )
    ask = (
        "SELECT ARRAY[current_setting('work_mem'), current_setting('app.name'),"
        " current_setting('app.other'), current_setting('TimeZone'), current_user]"
    )
    connection_created.connect(set_up)
    try:
        fresh = await bridged(run)(alias, ask)
        assert fresh == ["33MB", "it's", "b", "Asia/Tokyo", "pg_monitor"]
        async with pinned(alias):
            await bridged(run)(alias, "RESET ROLE")
            for name, value in (("work_mem", "44MB"), ("app.name", "c"), ("app.other", "d")):
                await bridged(run)(alias, "SELECT set_config(%s, %s, false)", [name, value])
        assert await bridged(run)(alias, ask) == fresh
    finally:
        connection_created.disconnect(set_up)
