"""The peers: the code that drives each, and how it is configured."""

from dataclasses import dataclass, field
from typing import Any

OURS = "pgbackend"
RAW = "psycopg"


@dataclass(frozen=True)
class Peer:
    """A library in one of its ways of use; *engine* is for Django's settings.

    One that is not *usual* is measured only if it is named.
    """

    name: str
    module: str
    options: dict[str, Any] = field(default_factory=dict)
    engine: str = ""
    usual: bool = True
    # Which of the settings' applications it has; by default those of its name.
    apps: str = ""

    @property
    def database(self) -> str:
        """The name of its database."""
        return "bench_" + "".join(each if each.isalnum() else "_" for each in self.name)


_STOCK = "django.db.backends.postgresql"

PEERS = {
    peer.name: peer
    for peer in [
        Peer(OURS, "tests.benchmarks_pubsub.peer_pgbackend", engine="pgbackend"),
        Peer(
            "pgbackend, uvloop",
            "tests.benchmarks_pubsub.peer_pgbackend",
            {"loop": "uvloop"},
            engine="pgbackend",
            usual=False,
            apps=OURS,
        ),
        Peer(
            "pgbackend, Django's backend",
            "tests.benchmarks_pubsub.peer_pgbackend",
            engine=_STOCK,
            usual=False,
            apps=OURS,
        ),
        Peer("django-pgpubsub", "tests.benchmarks_pubsub.peer_pgpubsub", engine=_STOCK),
        Peer("procrastinate", "tests.benchmarks_pubsub.peer_procrastinate"),
        Peer(
            "pgqueuer",
            "tests.benchmarks_pubsub.peer_pgqueuer",
            {"batch": 1_000, "consumers": 1},
        ),
        Peer("django-tasks-db", "tests.benchmarks_pubsub.peer_tasks_db", engine=_STOCK),
        Peer(RAW, "tests.benchmarks_pubsub.peer_psycopg"),
    ]
}
