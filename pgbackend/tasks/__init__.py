"""Who may use which connection now: leases, turns, transactions and those who join them.

This room knows tasks and threads, but not how SQL is made or what it does.

- `lease`: a pooled connection on loan.
- `actors`: who uses a transaction, and who works for whom.
- `line`, `turns`: who waits, and whose turn it is in a transaction.
- `state`: what Django keeps on a wrapper, for each task.
- `membership`: transactions, and the tasks and threads that join them.
- `abandoning`, `orphans`: blocks that were left where nothing can be awaited, or whose task ended.
- `handover`, `thread_calls`, `own_threads`: threads in a transaction of the event loop's.
- `adopting`: which tasks of tests are in a test's transaction.
"""
