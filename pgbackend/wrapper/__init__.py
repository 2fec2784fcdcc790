"""The parts of `pgbackend.base.DatabaseWrapper`, and where calls for an alias go.

This room knows Django's connection wrapper, but changes nothing of Django's.

- `options`, `settings_checks`: what ``OPTIONS`` may have, and what checks say of it.
- `opening`: how a pool is made, and each connection before its first use.
- `attributes`: the wrapper's attributes, for each task and thread.
- `transactions`, `on_commit`: begin, commit and roll back; the hooks of a commit.
- `cursors`: Django's cursor wrappers, holding a lease.
- `query_log`, `thread_wrappers`: ``connection.queries`` and ``execute_wrapper`` of a request.
- `aliases`, `dispatch`: which alias a call will use; whether it goes to the bridge or a thread.
"""
