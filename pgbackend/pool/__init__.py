"""The connections of one event loop: opened, lent, waited for and closed.

This room knows psycopg and psycopg_pool, but neither the transactions of tasks nor the ORM.

- `values`, `options`: what options may be, and those of a pool.
- `physical`: one asynchronous connection of a pool.
- `positions`, `session_reset`: resets of sessions that go with the next statement, and its errors.
- `socket_wait`, `stopping`: waiting for the server, and stopping what it does.
- `face`: psycopg's synchronous connection over a physical one, which Django gets.
- `passwords`: keeping passwords out of tracebacks.
- `waiters`: who waits for a connection.
- `open_pools`: which pools are open.
- `background`, `connecting`, `returning`, `pool`: `ConnectionPool`, one for each alias and
  settings, event loop and process: its own tasks, connecting, giving back, and lending.
"""
