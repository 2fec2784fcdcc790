"""What answers messages in the tests of transports: it knows nothing of models.

===============  ===============================================================================
message          answer
===============  ===============================================================================
``sleep:0.5``    after so many seconds, in the database
``large:1000``   so many characters
``pid``          the process id
``again:0.5``    whether it was redelivered, after so many seconds
``log:x``        the message itself; a row with it is written, which commits before the answer
``raise``        none: an exception
(any other)      the message itself
===============  ===============================================================================
"""

import os

from django.db import connection


def handle(wire: str, *, redelivered: bool) -> str:
    """Answer one message."""
    word, _, rest = wire.partition(":")
    with connection.cursor() as cursor:
        match word:
            case "sleep":
                cursor.execute("SELECT pg_sleep(%s)", [float(rest)])
            case "large":
                return "ü" * int(rest)
            case "pid":
                return f"{os.getpid()}"
            case "again":
                cursor.execute("SELECT pg_sleep(%s)", [float(rest or 0)])
                return f"{redelivered}"
            case "log":
                cursor.execute("INSERT INTO rpc_site_label (word) VALUES (%s)", [rest])
            case "raise":
                raise RuntimeError("handle raises")
            case _:
                cursor.execute("SELECT 1")
    return wire
