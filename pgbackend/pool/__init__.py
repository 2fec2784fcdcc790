"""The connections of one event loop: opened, lent, waited for and closed.

This room knows psycopg and psycopg_pool, but neither the transactions of tasks nor the ORM.

- `values`, `options`: the allowed values of options, and the options of a pool.
- `physical`: one asynchronous connection of a pool.
- `error_positions`, `session_reset`: positions in errors of a statement that was sent behind
  others; session resets that are sent with the next statement.
- `socket_wait`, `stopping`: waiting for the server, and stopping a statement in it.
- `face`: psycopg's synchronous connection over a physical one, which Django gets.
- `passwords`: keeping passwords out of tracebacks.
- `waiters`: the queue of clients that wait for a connection.
- `open_pools`: the pools that are open.
- `background`, `connecting`, `returning`, `pool`: `ConnectionPool`, one for each alias and
  settings, event loop and process: its own tasks, connecting, taking back, and lending.
"""
