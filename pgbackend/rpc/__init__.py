"""Querysets that are sent to another service and run there: a client, a server, transports.

The names in ``__all__`` are public; each is imported on first use. `protocol` and `client` need
neither Django nor psycopg.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import on_first_use

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
    __getattr__, __dir__ = on_first_use(globals(), _PLACES)
