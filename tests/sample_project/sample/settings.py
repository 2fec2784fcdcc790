"""Settings of a project whose tests run in the bridge. PGBACKEND_TEST_DSN names the server."""

import os
from urllib.parse import unquote, urlsplit

_dsn = urlsplit(os.environ["PGBACKEND_TEST_DSN"])


def _database(name: str) -> dict[str, object]:
    return {
        "ENGINE": "pgbackend",
        "NAME": name,
        "USER": unquote(_dsn.username or ""),
        "PASSWORD": unquote(_dsn.password or ""),
        "HOST": _dsn.hostname,
        "PORT": _dsn.port,
        "OPTIONS": {
            "application_name": "pgbackend-sample",
            "bridge": os.environ.get("SAMPLE_BRIDGE") != "off",
        },
    }


DATABASES = {
    "default": _database("pgbackend_sample"),
    "other": _database("pgbackend_sample_other"),
}
if os.environ.get("SAMPLE_LITE"):
    DATABASES["lite"] = {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ["SAMPLE_LITE"],
        # In a file: Django never closes the tests' database if it is in memory, and CPython 3.13
        # warns of that when the run's context has ended.
        "TEST": {"NAME": f"{os.environ['SAMPLE_LITE']}.tests"},
    }
DATABASE_ROUTERS = ["sample.router.Router"]
TEST_RUNNER = "pgbackend.test.DiscoverRunner"

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "sample",
]
# Without Django's own migrations, of which there are many: they are not what is tested.
MIGRATION_MODULES = {"auth": None, "contenttypes": None, "sessions": None}
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
ROOT_URLCONF = "sample.urls"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
STATIC_URL = "static/"
SECRET_KEY = "sample"
USE_TZ = True
