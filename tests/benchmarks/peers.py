"""The peers: which environment each has, and the code that drives it."""

from dataclasses import dataclass, field
from typing import Any

OURS = "pgbackend"


@dataclass(frozen=True)
class Peer:
    """A library in one of its ways of use.

    *environment* names its requirements and its virtual environment. *engine*, *options* and
    *apps* are for Django's settings where it serves the site of the HTTP works. With *workers*, a
    class of gunicorn's, it serves synchronous views in so many *threads*. One without a *module*
    has the HTTP works alone. One that is not *usual* is measured only if it is named.
    """

    name: str
    environment: str
    module: str
    options: dict[str, Any] = field(default_factory=dict)
    engine: str = ""
    engine_options: dict[str, Any] = field(default_factory=dict)
    apps: tuple[str, ...] = ()
    usual: bool = True
    workers: str = ""
    threads: int = 1


def _pool(size: int) -> dict[str, Any]:
    return {"pool": {"min_size": size, "max_size": size, "timeout": 60}}


_POOL = _pool(20)


def _gunicorn(name: str, workers: str, threads: int) -> Peer:
    return Peer(
        name,
        "django",
        "",
        engine="django.db.backends.postgresql",
        engine_options=_pool(threads),
        workers=workers,
        threads=threads,
    )


PEERS = {
    peer.name: peer
    for peer in [
        Peer(
            OURS,
            "pgbackend",
            "tests.benchmarks.peer_django",
            {"backend": "pgbackend"},
            "pgbackend",
            _POOL,
        ),
        Peer(
            "pgbackend, bridged request",
            "pgbackend",
            "tests.benchmarks.peer_django",
            {"backend": "pgbackend", "bridged": True},
        ),
        Peer(
            "pgbackend, prepared",
            "pgbackend",
            "tests.benchmarks.peer_django",
            {"backend": "pgbackend", "prepared": True},
            usual=False,
        ),
        Peer(
            "django+pool",
            "django",
            "tests.benchmarks.peer_django",
            {"backend": "stock", "pooled": True},
            "django.db.backends.postgresql",
            _POOL,
        ),
        Peer(
            "django",
            "django",
            "tests.benchmarks.peer_django",
            {"backend": "stock", "pooled": False},
            "django.db.backends.postgresql",
        ),
        Peer("django-sync", "django", "tests.benchmarks.peer_django_sync"),
        _gunicorn("gunicorn, 20 threads", "gthread", 20),
        _gunicorn("gunicorn, 2 threads", "gthread", 2),
        _gunicorn("gunicorn, sync worker", "sync", 1),
        Peer(
            "django-async-backend",
            "django-async-backend",
            "tests.benchmarks.peer_async_backend",
            {},
            "django_async_backend.db.backends.postgresql",
            _POOL,
            ("django_async_backend",),
        ),
        Peer(
            "sqlalchemy+psycopg",
            "sqlalchemy",
            "tests.benchmarks.peer_sqlalchemy",
            {"driver": "psycopg"},
        ),
        Peer(
            "sqlalchemy+asyncpg",
            "sqlalchemy",
            "tests.benchmarks.peer_sqlalchemy",
            {"driver": "asyncpg"},
        ),
        Peer("tortoise", "tortoise", "tests.benchmarks.peer_tortoise"),
        Peer("gevent", "gevent", "tests.benchmarks.peer_gevent"),
        Peer("psycopg", "psycopg", "tests.benchmarks.peer_psycopg"),
        Peer("asyncpg", "asyncpg", "tests.benchmarks.peer_asyncpg"),
    ]
}
