"""A listening connection that hears what was sent before it asks."""

import psycopg

from pgbackend.pubsub.channels import BaseChannel
from tests.support.server import DATABASES


class Ear:
    """Hears *channels*; the server sends in the order of commits, so a NOTIFY of its own ends."""

    def __init__(self, dsn: str, *channels: type[BaseChannel]) -> None:
        self.conn = psycopg.connect(dsn, autocommit=True, dbname=DATABASES[0])
        for name in ["ear", *(each.listen_name() for each in channels)]:
            self.conn.execute(f"LISTEN {name}".encode())

    def heard(self) -> list[tuple[str, str]]:
        """Return the channels and texts since the last call."""
        self.conn.execute("NOTIFY ear")
        found = []
        for each in self.conn.notifies():
            if each.channel == "ear":
                break
            found.append((each.channel, each.payload))
        return found
