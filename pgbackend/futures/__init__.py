"""Futures: work that is described now and run when its result is wanted, or together with other.

The names in ``__all__`` are public. Each is imported on first use: `Future` needs no Django.

- `result`: `Future`, the result of local or remote work.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .result import Future, NotAwaitedError

__all__ = ["Future", "NotAwaitedError"]

# The modules that define the public names.
_PLACES = {"Future": "result", "NotAwaitedError": "result"}

# Type checkers see the imports above, and no other names.
if not TYPE_CHECKING:

    def __getattr__(name):
        """Import a public name on first use (PEP 562)."""
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f".{_PLACES[name]}", __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """Return all names, including those that were not imported yet."""
    return sorted({*globals(), *__all__})
