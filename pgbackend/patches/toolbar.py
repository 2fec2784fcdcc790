"""django-debug-toolbar's SQL panel, for requests served on the loop and in threads.

The panel instruments the connection wrappers of one thread, where Django would do all the work of a
request. This patch adds the wrappers that the request has on the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from django.db import connections

from ..tasks.request import request_wrappers
from ..wrapper.attributes import BackendWrapper


def patch(panel: ModuleType) -> None:
    """Let the module ``debug_toolbar.panels.sql.panel`` see all of a request's statements.

    The panel gets the wrappers from `connections`, and `wrap_cursor` replaces their methods.
    (django-debug-toolbar 8.)
    """
    if hasattr(panel, "connections") and hasattr(panel, "wrap_cursor"):
        panel.connections = _Connections()  # type: ignore[attr-defined]  # the patch
        panel.wrap_cursor = _wrapping(panel.wrap_cursor)  # type: ignore[attr-defined]


class _Connections:
    """`django.db.connections` as the panel uses them."""

    def all(self) -> list[Any]:
        """Return the wrappers of this thread and those that the request has on the loop."""
        here: list[Any] = connections.all()
        return here + [each for each in request_wrappers() if each not in here]


def _wrapping(wrap_cursor: Callable[[Any], None]) -> Callable[[Any], None]:
    def patched(wrapper: Any) -> None:
        was_wrapped = hasattr(wrapper, "_djdt_cursor")
        wrap_cursor(wrapper)
        if isinstance(wrapper, BackendWrapper) and not was_wrapped:
            for name in ("cursor", "chunked_cursor"):
                setattr(wrapper, name, _unless_joined(wrapper, getattr(wrapper, name)))

    return patched


def _unless_joined(wrapper: BackendWrapper, method: Callable[..., Any]) -> Callable[..., Any]:
    """Return *method* without the toolbar where a transaction on the loop runs the statements.

    The toolbar sees the statements there, on the loop's own wrapper.
    """

    def cursor(*args: Any, **kwargs: Any) -> Any:
        if wrapper.joined_transaction is None:
            return method(*args, **kwargs)
        return getattr(type(wrapper), method.__name__)(wrapper, *args, **kwargs)

    return cursor
