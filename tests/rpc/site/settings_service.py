"""Settings of services that run beside a test: their backends are not the test's own."""

import os
from typing import Any

from tests.settings import *  # noqa: F403
from tests.settings import PGBACKEND_RPC as _RPC
from tests.settings import database

DATABASES = {
    "default": {
        **database("pgbackend_tests", pool={"max_size": 8}, application_name="pgbackend-rpc"),
        "ENGINE": os.environ.get("RPC_ENGINE", "pgbackend"),
    },
    "other": database("pgbackend_tests_other", application_name="pgbackend-rpc"),
}
if DATABASES["default"]["ENGINE"] != "pgbackend":
    DATABASES["default"]["OPTIONS"] = {"application_name": "pgbackend-rpc"}
ROOT_URLCONF = "tests.rpc.site.urls"
ALLOWED_HOSTS = ["127.0.0.1"]
PGBACKEND_RPC: dict[str, Any] = {
    **_RPC,
    "BROKER_URL": os.environ.get("RPC_BROKER_URL"),
    "RESULT_BACKEND": os.environ.get("RPC_RESULT_BACKEND"),
    "CONCURRENCY": 10,
}
if "RPC_QUEUE" in os.environ:
    _queue = os.environ["RPC_QUEUE"]
    PGBACKEND_RPC |= {"DEFAULT_QUEUE_NAME": _queue, "PRIORITY_QUEUE_NAME": f"{_queue}.high"}
# By default it answers what is stored for it.
del PGBACKEND_RPC["LISTEN"]
