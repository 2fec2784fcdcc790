"""The cursors of the package's own statements: the short way, and who keeps them from it."""

from typing import Any

from django.db import connection, transaction

from pgbackend import bridged
from pgbackend.extending import own_cursor
from pgbackend.pubsub import Notification, asend
from pgbackend.sql.direct import DirectCursor
from tests.pubsub.site.channels import Orders
from tests.support.server import Server


@bridged
def test_the_short_way() -> None:
    """In the bridge the package's own statements go as the ORM's do."""
    with own_cursor("default") as cursor:
        assert isinstance(cursor, DirectCursor)
        cursor.execute("SELECT %s::int", [17])
        assert cursor.fetchone() == (17,)


def test_outside_the_bridge(stock: str) -> None:
    """Elsewhere, and on Django's own backend, the cursor is Django's."""
    for alias in ("default", stock):
        with own_cursor(alias) as cursor:
            assert not isinstance(cursor, DirectCursor)
            cursor.execute("SELECT %s::int", [17])
            assert cursor.fetchone() == (17,)


async def test_begin_comes_with_the_message(server: Server) -> None:
    """The BEGIN of a transaction and a message that is sent first in it are one message."""
    async with transaction.atomic():
        await asend(Orders(1))
        query = server.one(
            "SELECT query FROM pg_stat_activity WHERE state = 'idle in transaction'"
            " AND application_name = 'pgbackend-tests'"
        )
        assert query.startswith("BEGIN;\n")
        assert "INSERT INTO pgpubsub_notification" in query
    assert await Notification.objects.acount() == 1


async def test_execute_wrappers() -> None:
    """Whoever looks at statements sees these, too."""
    seen: list[Any] = []

    def look(execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        seen.append(sql)
        return execute(sql, params, many, context)

    @bridged
    def send() -> None:
        with connection.execute_wrapper(look), own_cursor("default") as cursor:
            cursor.execute("SELECT 1", None)

    await send()
    assert seen == ["SELECT 1"]
