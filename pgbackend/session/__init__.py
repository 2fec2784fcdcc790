"""The effects of statements on a session in the server, and who keeps those effects.

This room knows the text of SQL and the transactions of tasks, but not how SQL is compiled.

- `words`, `masking`, `text`: what the text of a statement does to its session.
- `clean`: statements that leave a session as it was.
- `snapshot`: the state that a session was configured with, and the statements that restore it.
- `row_settings`: roles and settings that a request has made on one of its connections.
- `guard`: statements of psycopg's cursors, inspected before they are sent.
"""

from .clean import changes_session

__all__ = ["changes_session"]
