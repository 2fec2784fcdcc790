"""Settings of services and clients: the environment has the servers and which of them this is."""

import json
import os
from typing import Any
from urllib.parse import unquote, urlsplit

_dsn = urlsplit(os.environ["BENCH_DSN"])
_engine = os.environ["BENCH_ENGINE"]
_broker = os.environ["BENCH_BROKER"]
# What a client has as its service; {} in a service.
_service: dict[str, Any] = json.loads(os.environ.get("BENCH_SERVICE", "{}"))

_keys = {"bench": "a secret of the benchmark, which has 32 bytes and more"}

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
    }
}
INSTALLED_APPS = ["pgtrigger", "pgbackend.pubsub", "pgbackend.rpc.server", "tests.rpc.site"]
PGBACKEND_RPC = {"KEYS": _keys, "BROKER_URL": _broker, "RESULT_BACKEND": _broker}
if _service:
    DATABASES["rpc"] = {
        "ENGINE": "pgbackend.rpc",
        "BROKER_URL": _broker,
        "KEYS": _keys,
        "PRINCIPAL": "chef",
        **_service,
    }
    DATABASE_ROUTERS = ["pgbackend.rpc.RpcRouter"]
    INSTALLED_APPS += ["pgbackend.rpc", "tests.rpc.waiter"]

ROOT_URLCONF = "tests.rpc.site.urls"
ALLOWED_HOSTS = ["127.0.0.1"]
DEBUG = False
SECRET_KEY = "benchmarks"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
# Nothing is written for a message that went well, and errors are seen.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["console"], "level": "WARNING"},
    "loggers": {"pgbackend.rpc.server.messages": {"level": "WARNING"}},
}
