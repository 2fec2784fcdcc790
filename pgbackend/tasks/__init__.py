"""Who may use which connection now: leases, turns, transactions and those who join them.

This room knows tasks and threads, but not how SQL is made or what it does.

- `actors`, `request`: who uses a transaction, and for which request.
- `line`, `frames`, `turns`: who waits, the blocks that were entered, and whose turn it is.
- `transaction`, `kept_sessions`, `membership`: what tasks and threads join.
- `lease`: a pooled connection on loan.
- `abandoning`, `taken`, `orphans`: blocks that were left where nothing can be awaited, or whose
  task has ended.
- `state`, `states`: what Django keeps on a wrapper, for each task.
- `own_threads`, `thread_calls`, `handover`: threads in a transaction of the event loop's.
"""
