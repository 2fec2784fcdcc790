"""Settings for the peers that are Django: BENCH_PEER is which one, and BENCH_DSN its database."""

import os
from typing import Any
from urllib.parse import unquote, urlsplit

_dsn = urlsplit(os.environ["BENCH_DSN"])
_engine = os.environ["BENCH_ENGINE"]
_connections = int(os.environ["BENCH_CONNECTIONS"])

DATABASES: dict[str, dict[str, Any]] = {
    "default": {
        "ENGINE": _engine,
        "NAME": _dsn.path.strip("/"),
        "USER": unquote(_dsn.username or ""),
        "PASSWORD": unquote(_dsn.password or ""),
        "HOST": _dsn.hostname,
        "PORT": _dsn.port,
        # Connections that are kept for good.
        "CONN_MAX_AGE": 0 if _engine == "pgbackend" else None,
        "OPTIONS": {"pool": {"min_size": _connections, "max_size": _connections, "timeout": 60}}
        if _engine == "pgbackend"
        else {},
    }
}

INSTALLED_APPS = {
    "pgbackend": ["pgtrigger", "pgbackend.pubsub", "tests.benchmarks_pubsub.site_pgbackend"],
    "django-pgpubsub": ["pgtrigger", "pgpubsub", "tests.benchmarks_pubsub.site_pgpubsub"],
    "django-tasks-db": ["django_tasks_db"],
}[os.environ["BENCH_PEER"]]

TASKS = {"default": {"BACKEND": "django_tasks_db.DatabaseBackend"}}

DEBUG = False
SECRET_KEY = "benchmarks"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
# Nothing is written for a message that went well; a handler that fails is seen.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["console"], "level": "WARNING"},
}
