"""The bridge: synchronous code on the event loop's thread, in greenlets.

This room knows neither Django nor psycopg, and none of the other rooms.

- `current`: the greenlet of the running call, and whether there is one.
- `loops`: what event loops allow to greenlets.
- `greenlets`: `run_bridged` and `await_bridged`, the two verbs that all else stands on.
- `ends`: callbacks at the end of a call, or of a longer scope such as a request.
- `lock`: a lock between tasks that bridged code can wait for.
- `held_locks`: locks of Python's own that a function holds while it waits in the bridge.
"""

from .current import BridgeError, is_bridged
from .greenlets import await_bridged, run_bridged

__all__ = ["BridgeError", "await_bridged", "is_bridged", "run_bridged"]
