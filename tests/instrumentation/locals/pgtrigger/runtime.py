"""What django-pgtrigger does with its thread's state, in short: a set that blocks add to.

A function for ``execute_wrapper`` notes by which statements what is ignored.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from django.db import connection

_ignore = threading.local()

noted: list[tuple[str, list[str]]] = []


def _inject(execute: Callable[..., Any], sql: str, params: Any, *args: Any) -> Any:
    noted.append((sql, sorted(_ignore.value)))
    return execute(sql, params, *args)


@contextlib.contextmanager
def ignore(name: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if _inject not in connection.execute_wrappers:
            stack.enter_context(connection.execute_wrapper(_inject))
        if not hasattr(_ignore, "value"):
            _ignore.value = set()
        if name in _ignore.value:
            yield
            return
        try:
            _ignore.value.add(name)
            yield
        finally:
            _ignore.value.remove(name)
