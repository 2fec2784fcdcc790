"""Futures: work that is described now and run when its result is wanted, or together with other.

The names in ``__all__`` are public. Each is imported on first use: `Future` needs no Django.

- `result`, `outcome`: `Future`, the result of local or remote work; how it ends.
- `recording`: `future` and `delayed`, for querysets and functions that use the ORM.
- `calls`: where such a call runs.
- `gathering`, `completing`: `gather` and `as_completed`.
- `driving`, `savepoints`: several calls in one transaction, whose statements go together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import on_first_use

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
    __getattr__, __dir__ = on_first_use(globals(), _PLACES)
