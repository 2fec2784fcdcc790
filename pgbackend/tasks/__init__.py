"""Leases, turns and transactions: which task or thread may use which connection now.

This room knows tasks and threads, but not how SQL is made or what it does.

- `actors`, `request`: the users of a transaction, and the request they work for.
- `waiting_line`, `frames`, `turns`: the waiting tasks, the entered blocks, and whose turn it is.
- `transaction`, `kept_sessions`, `membership`: what tasks and threads join.
- `lease`: a pooled connection on loan.
- `abandoning`, `revoked`, `orphans`: blocks that were left where nothing can be awaited, or whose
  task has ended.
- `state`, `states`: the attributes that Django keeps on a wrapper, for each task.
- `own_threads`, `thread_calls`, `handover`: threads in a transaction of the event loop.
"""
