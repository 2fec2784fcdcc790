"""Querysets that are sent to another service and run there: a client, a server, transports.

The names in ``__all__`` are public; each is imported on first use. `protocol` and `client` need
neither Django nor psycopg.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .models import RpcManager, RpcModel
    from .protocol.errors import RemoteError
    from .queryset import RpcQuerySet
    from .results import Delayed, RpcFuture
    from .router import RpcRouter

__all__ = [
    "Delayed",
    "RemoteError",
    "RpcFuture",
    "RpcManager",
    "RpcModel",
    "RpcQuerySet",
    "RpcRouter",
]

# The modules that define the public names.
_PLACES = {
    "Delayed": "results",
    "RemoteError": "protocol.errors",
    "RpcFuture": "results",
    "RpcManager": "models",
    "RpcModel": "models",
    "RpcQuerySet": "queryset",
    "RpcRouter": "router",
}

# Type checkers see the imports above, and no other names.
if not TYPE_CHECKING:

    def __getattr__(name):
        """Import a public name on first use (PEP 562): models need Django's registry of apps."""
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f".{_PLACES[name]}", __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """Return all names, including those that were not imported yet."""
    return sorted({*globals(), *__all__})
