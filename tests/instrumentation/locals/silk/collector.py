"""What django-silk does, in short: it replaces ``SQLCompiler.execute_sql``.

What it sees goes to the request that its one collector has in a ``threading.local``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from threading import local
from typing import Any

from django.core.exceptions import EmptyResultSet
from django.db.models.sql.compiler import SQLCompiler
from django.http import HttpRequest, HttpResponse

from tests.instrumentation import site


class DataCollector:
    """One for all requests, made when it is first asked for."""

    @classmethod
    @functools.cache
    def get(cls) -> DataCollector:
        return cls()

    def __init__(self) -> None:
        self.local = local()

    def configure(self) -> None:
        self.local.queries = {}
        self.local.count = 0

    def register(self, query: str) -> None:
        self.local.count += 1
        self.local.queries[self.local.count] = query


def execute_sql(self: Any, *args: Any, **kwargs: Any) -> Any:
    try:
        sql, params = self.as_sql()
    except EmptyResultSet:
        return self._execute_sql(*args, **kwargs)
    try:
        return self._execute_sql(*args, **kwargs)
    finally:
        DataCollector.get().register(site.text(sql, params))


def middleware(get_response: Callable[[HttpRequest], HttpResponse]) -> Any:
    """Synchronous middleware, whose request runs in a thread of its own."""

    def call(request: HttpRequest) -> HttpResponse:
        if not hasattr(SQLCompiler, "_execute_sql"):
            SQLCompiler._execute_sql = SQLCompiler.execute_sql
            SQLCompiler.execute_sql = execute_sql
        DataCollector.get().configure()
        response = get_response(request)
        site.seen[request.path.split("/")[2]] = list(DataCollector.get().local.queries.values())
        return response

    return call
