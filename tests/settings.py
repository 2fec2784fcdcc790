"""Settings of the library's own tests. `conftest` sets PGBACKEND_TEST_DSN first."""

import importlib.util
import os
from urllib.parse import unquote, urlsplit

_dsn = urlsplit(os.environ["PGBACKEND_TEST_DSN"])

# Our backends are told from others in pg_stat_activity by this name.
APPLICATION_NAME = "pgbackend-tests"


def database(name: str, **options: object) -> dict[str, object]:
    return {
        "ENGINE": "pgbackend",
        "NAME": name,
        "USER": unquote(_dsn.username or ""),
        "PASSWORD": unquote(_dsn.password or ""),
        "HOST": _dsn.hostname,
        "PORT": _dsn.port,
        "OPTIONS": {"application_name": APPLICATION_NAME, **options},
    }


DATABASES = {
    "default": database("pgbackend_tests", pool={"max_size": 8}),
    "other": database("pgbackend_tests_other"),
}
DATABASE_ROUTERS = ["tests.support.router.OtherRouter"]
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "tests",
    "pgbackend.rpc.server",
    "tests.rpc.site",
    "pgbackend.rpc",
    "tests.rpc.waiter",
]
# Django 6.1 asks for django.contrib.postgres where models have arrays and ranges. It would
# execute statements on each new connection, which tests count. The application "pgbackend" is not
# installed, so that the backend is loaded as late as it can be. The alias of tests.rpc.waiter, and
# its router, are those of tests/rpc: a router is asked for each query, which tests count, too.
SILENCED_SYSTEM_CHECKS = ["postgres.E005", "pgbackend.rpc.E002"]
PGBACKEND_RPC = {
    "KEYS": {
        # Speaks for whom it names; the second one for one principal alone.
        "k1": "the first secret of the tests, with 32 bytes or more",
        "k2": "the other secret of the tests, with 32 bytes or more",
    },
    "PRINCIPALS": {"k2": ["ada"]},
    # By tests/rpc/site/settings_service.py alone: those of pubsub count what is listened to.
    "LISTEN": None,
}
if importlib.util.find_spec("pgtrigger") is not None:
    INSTALLED_APPS += ["pgtrigger", "pgbackend.pubsub", "tests.pubsub.site"]
    # Django 6.0 and later.
    TASKS = {
        "default": {"BACKEND": "django.tasks.backends.immediate.ImmediateBackend"},
        "pubsub": {"BACKEND": "pgbackend.pubsub.tasks.TaskBackend", "QUEUES": ["default", "slow"]},
        "brief": {
            "BACKEND": "pgbackend.pubsub.tasks.TaskBackend",
            "OPTIONS": {"timeout": 0.1, "keep_results": 60},
        },
        "leased": {"BACKEND": "pgbackend.pubsub.tasks.TaskBackend", "OPTIONS": {"lease": 60.0}},
    }
# All tables from the models: nothing here is about migrations.
MIGRATION_MODULES = {name.rpartition(".")[2]: None for name in INSTALLED_APPS}
CACHES = {
    "default": {
        "BACKEND": "django.core.cache.backends.db.DatabaseCache",
        "LOCATION": "cache_table",
    }
}
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
SECRET_KEY = "tests"
USE_TZ = True
