"""The connections of one event loop: opened, lent, waited for and closed.

This room knows psycopg and psycopg_pool, but neither tasks' transactions nor the ORM.

- `pool`: `ConnectionPool`, one for each alias and settings, event loop and process.
- `waiters`: who waits for a connection.
- `open_pools`: which pools are open.
- `physical`: one asynchronous connection of a pool.
- `face`: psycopg's synchronous connection over it, which Django gets.
- `socket_wait`: waiting for a connection's socket.
- `session_reset`: resets of sessions, sent with the next statement.
- `positions`: where errors of such statements say that they are.
- `passwords`: keeping passwords out of tracebacks.
"""
