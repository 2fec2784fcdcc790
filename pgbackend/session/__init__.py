"""What statements do to a session of the server's, and who keeps what they made in it.

This room knows the text of SQL and the transactions of tasks, but not how SQL is compiled.

- `words`, `masking`, `text`: what the text of a statement does to its session.
- `clean`: statements that leave a session as it was.
- `snapshot`: the state that a session was configured with, and what gives it back after others.
- `in_force`: roles and settings that a request has made on one of its connections.
- `guard`: statements of psycopg's cursors, looked at before they are sent.
"""

from .clean import changes_session

__all__ = ["changes_session"]
