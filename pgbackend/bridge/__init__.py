"""The bridge: synchronous code on the event loop's thread, in greenlets.

This room knows neither Django nor psycopg, and none of the other rooms.

- `greenlets`: `run_bridged` and `await_bridged`, the two verbs that all else stands on.
- `held_locks`: locks of Python's own that a function holds while it waits in the bridge.
"""
