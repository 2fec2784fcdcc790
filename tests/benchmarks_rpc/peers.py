"""The peers: what answers, and what asks."""

from dataclasses import dataclass, field
from typing import Any

OURS = "pgbackend"
POSTGRES = "pgbackend, postgres"
HTTP = "pgbackend, http"
CELERY = "celery"
CELERY_READ = "celery, a read"


@dataclass(frozen=True)
class Peer:
    """A way to ask a service.

    *service* is the command that runs it; *module* has the class `Client`, which takes *options*.
    *engine* is that of the service's own database.
    """

    name: str
    service: list[str]
    module: str
    options: dict[str, Any] = field(default_factory=dict)
    engine: str = "pgbackend"


_WORKER = ["-m", "celery", "-A"]
_OPTIONS = ["--without-mingle", "--without-gossip"]

PEERS = {
    peer.name: peer
    for peer in [
        Peer(
            OURS,
            [*_WORKER, "pgbackend.rpc.celery", "worker", "-Q", "rpc,rpc.high", *_OPTIONS],
            "tests.benchmarks_rpc.client_pgbackend",
            {"TRANSPORT": "celery"},
        ),
        Peer(
            POSTGRES,
            ["-m", "django", "listen"],
            "tests.benchmarks_rpc.client_pgbackend",
            {"TRANSPORT": "postgres"},
        ),
        Peer(
            HTTP,
            ["-m", "uvicorn", "tests.rpc.site.asgi:application", "--log-level", "warning"],
            "tests.benchmarks_rpc.client_pgbackend",
            {"TRANSPORT": "http"},
        ),
        *(
            Peer(
                name,
                [*_WORKER, "tests.benchmarks_rpc.plain", "worker", "-Q", queue, *_OPTIONS],
                "tests.benchmarks_rpc.client_celery",
                {"task": task, "queue": queue},
                "django.db.backends.postgresql",
            )
            for name, task, queue in (
                (CELERY, "echo", "plain"),
                (CELERY_READ, "read", "plain.read"),
            )
        ),
    ]
}
