"""A package that pgbackend does not know, and that keeps what it needs in a ``threading.local``."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from django.db import connections
from django.http import HttpRequest, HttpResponse

from tests.instrumentation import site

_local = threading.local()


def _note(execute: Callable[..., Any], sql: str, params: Any, *args: Any) -> Any:
    _local.statements.append(site.text(sql, params))
    return execute(sql, params, *args)


def middleware(get_response: Callable[[HttpRequest], HttpResponse]) -> Any:
    """Synchronous middleware, whose request runs in a thread of its own."""

    def call(request: HttpRequest) -> HttpResponse:
        _local.statements = []
        with contextlib.ExitStack() as stack:
            for each in connections.all():
                stack.enter_context(each.execute_wrapper(_note))
            response = get_response(request)
        site.seen[request.path.split("/")[2]] = _local.statements
        return response

    return call
