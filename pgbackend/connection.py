"""Public: the class of ``connection.connection`` on the event loop, for types and isinstance()."""

from .bridge.lock import BridgedLock
from .pool.face import BridgedConnection

__all__ = ["BridgedConnection", "BridgedLock"]
