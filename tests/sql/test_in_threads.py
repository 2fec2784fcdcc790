"""The short way in a thread: only for gathered calls, in a transaction that nobody looks at."""

from __future__ import annotations

from typing import Any

from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from pgbackend.futures import future, gather
from pgbackend.sql.direct import DirectCursor, cursor_for
from pgbackend.sql.in_threads import is_gathered_in_thread
from tests.models import Author
from tests.support.threads import run_in_thread


def is_short() -> bool:
    """Return whether a statement of the ORM's would go the short way."""
    sql, _ = Author.objects.filter(pk=1).query.get_compiler("default").as_sql()
    with cursor_for(transaction.get_connection(), sql) as cursor:
        return isinstance(cursor, DirectCursor)


def gathered(function: Any) -> Any:
    return gather(future(function)()).result()[0]


def test_who_goes_the_short_way() -> None:
    """A gathered call in a transaction does; code outside of one, or that is watched, does not."""

    def look(execute: Any, *args: Any) -> Any:
        return execute(*args)

    def work() -> list[bool]:
        found = [gathered(is_short), is_short()]
        with transaction.atomic():
            found += [gathered(is_short), is_short(), gathered(is_gathered_in_thread)]
            with CaptureQueriesContext(connection):
                found.append(gathered(is_short))
            with connection.execute_wrapper(look):
                found.append(gathered(is_short))
        return found

    assert run_in_thread(work) == [False, False, True, False, True, False, False]
    assert not is_gathered_in_thread()
