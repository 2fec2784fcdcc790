"""A Django database backend on pooled asynchronous psycopg connections.

Set ``ENGINE = "pgbackend"`` in ``DATABASES``. From asynchronous code await Django's own a-methods;
to run a synchronous function that uses the ORM on the event loop, use `bridged`.

The names in ``__all__`` are public, and so are the modules `asgi`, `base`, `connection`, `copying`,
`detector`, `errors`, `extending`, `futures`, `health`, `locks`, `prometheus`, `registry`,
`statistics`, `status.urls`, `telemetry`, `test` and `transaction`, and those with Django's names.
Each is imported on first use: ``import pgbackend`` needs neither Django nor psycopg. Importing
`base` changes Django; Django imports `base` for the first wrapper of such a database, and the
application "pgbackend" imports it earlier.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .lazy import on_first_use

if TYPE_CHECKING:
    from . import asgi as asgi
    from . import base as base
    from . import detector as detector
    from . import errors as errors
    from . import futures as futures
    from . import locks as locks
    from . import test as test
    from . import transaction as transaction
    from .bridge.current import BridgeError, is_bridged
    from .bridge.greenlets import await_bridged
    from .errors import CommitInDoubt, NotCommitted
    from .statistics import pools
    from .version import __version__
    from .wrapper.dispatch import bridged

__all__ = [
    "BridgeError",
    "CommitInDoubt",
    "NotCommitted",
    "__version__",
    "await_bridged",
    "bridged",
    "is_bridged",
    "pools",
]

# The modules that define the public names.
_PLACES = {
    "BridgeError": "bridge.current",
    "CommitInDoubt": "errors",
    "NotCommitted": "errors",
    "__version__": "version",
    "await_bridged": "bridge.greenlets",
    "bridged": "wrapper.dispatch",
    "is_bridged": "bridge.current",
    "pools": "statistics",
    # Modules.
    **dict.fromkeys(
        ("asgi", "base", "detector", "errors", "futures", "locks", "test", "transaction")
    ),
}

# Type checkers see the imports above, and no other names.
if not TYPE_CHECKING:
    __getattr__, __dir__ = on_first_use(globals(), _PLACES)
