"""The parts of `pgbackend.base.DatabaseWrapper`, and the dispatch of calls for an alias.

This room knows Django's connection wrapper, but changes nothing in Django.

- `options`: the backend's own ``OPTIONS``; `settings_checks`: the checks of them, and of settings.
- `attributes`: `BackendWrapper`, whose attributes are those of the running task or thread.
- `opening`: making a pool, and preparing each connection before its first use.
- `leasing`: borrowing a connection and holding it.
- `dispatch`: whether a call goes to the bridge or to a thread.
- `on_commit`, `transactions`: the hooks of a commit; begin, commit and roll back.
- `cursors`: Django's cursor wrappers, holding a lease.
- `thread_wrappers`, `query_log`: ``execute_wrapper`` and ``connection.queries`` of a request.
"""
