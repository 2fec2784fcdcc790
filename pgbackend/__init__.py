"""A Django database backend on pooled asynchronous psycopg connections.

Set ``ENGINE = "pgbackend"`` in ``DATABASES``. From asynchronous code await Django's own
a-methods; to run a synchronous function that uses the ORM on the event loop, use `bridged`.
"""

from . import base as base  # before routing: at its end it applies patches, which need both
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
