"""What django-pghistory does with its thread's state, in short: a request's own context.

A function for ``execute_wrapper`` adds it to each statement; entered a second time, it is the same.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from asgiref.sync import sync_to_async
from django.db import connections
from django.http import HttpRequest, HttpResponse

from tests.instrumentation import site

_tracker = threading.local()


class Value:
    def __init__(self) -> None:
        self.statements: list[str] = []


def _inject(execute: Callable[..., Any], sql: str, params: Any, *args: Any) -> Any:
    _tracker.value.statements.append(site.text(sql, params))
    return execute(sql, params, *args)


class context:
    def __enter__(self) -> Value:
        self._stack = contextlib.ExitStack()
        if not hasattr(_tracker, "value"):
            for each in connections.all():
                self._stack.enter_context(each.execute_wrapper(_inject))
            _tracker.value = Value()
            self._stack.callback(delattr, _tracker, "value")
        value: Value = _tracker.value
        return value

    def __exit__(self, *exc_info: Any) -> None:
        self._stack.close()

    async def __aenter__(self) -> Value:
        value: Value = await sync_to_async(self.__enter__)()
        return value

    async def __aexit__(self, *exc_info: Any) -> None:
        await sync_to_async(self.__exit__)(*exc_info)


def middleware(get_response: Callable[[HttpRequest], HttpResponse]) -> Any:
    """Synchronous middleware, whose request runs in a thread of its own."""

    def call(request: HttpRequest) -> HttpResponse:
        with context() as value:
            response = get_response(request)
        site.seen[request.path.split("/")[2]] = value.statements
        return response

    return call
