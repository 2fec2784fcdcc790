"""A Django database backend on pooled asynchronous psycopg connections.

Set ``ENGINE = "pgbackend"`` in ``DATABASES``. From asynchronous code await Django's own a-methods;
to run a synchronous function that uses the ORM on the event loop, use `bridged`.

The names in ``__all__`` are public, and so are the modules `asgi`, `base`, `connection`,
`detector`, `errors`, `extending`, `futures`, `registry`, `test` and `transaction`, and those with
Django's names. Each is imported on first use: ``import pgbackend`` needs neither Django nor
psycopg. Importing `base` changes Django; Django imports `base` for the first wrapper of such a
database, and the application "pgbackend" imports it earlier.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import asgi as asgi
    from . import base as base
    from . import detector as detector
    from . import errors as errors
    from . import futures as futures
    from . import test as test
    from . import transaction as transaction
    from .bridge.current import BridgeError, is_bridged
    from .bridge.greenlets import await_bridged
    from .errors import CommitInDoubt, NotCommitted
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
}

_MODULES = ("asgi", "base", "detector", "errors", "futures", "test", "transaction")

# Type checkers see the imports above, and no other names.
if not TYPE_CHECKING:

    def __getattr__(name):
        """Import a public name or module on first use (PEP 562)."""
        if name in _MODULES:
            return import_module(f".{name}", __name__)
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f".{_PLACES[name]}", __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """Return all names, including those that were not imported yet."""
    return sorted({*globals(), *__all__, *_MODULES})
