"""Futures: work that is described now and run when its result is wanted, or together with other.

The names in ``__all__`` are public. Each is imported on first use: `Future` needs no Django.

- `result`, `outcome`: `Future`, the result of local or remote work; how it ends.
- `recording`: `future` and `delayed`, for querysets and functions that use the ORM.
- `calls`: where such a call runs.
- `gathering`, `completing`: `gather` and `as_completed`.
- `driving`, `savepoints`: several calls in one transaction, whose statements go together.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .completing import as_completed
    from .gathering import gather
    from .recording import delayed, future
    from .result import Future, NotAwaitedError

__all__ = ["Future", "NotAwaitedError", "as_completed", "delayed", "future", "gather"]

# The modules that define the public names.
_PLACES = {
    "Future": "result",
    "NotAwaitedError": "result",
    "as_completed": "completing",
    "delayed": "recording",
    "future": "recording",
    "gather": "gathering",
}

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
