"""Settings of the example project.

The database is the one that DATABASE_URL or the PG* variables name, or else an embedded
PostgreSQL that keeps its data in the project's `.postgres` folder.
"""

import getpass
import os
import secrets
from pathlib import Path
from typing import Any

import psycopg
from django.core.exceptions import ImproperlyConfigured
from psycopg.conninfo import conninfo_to_dict

from proj import postgres

BASE_DIR = Path(__file__).resolve().parent.parent

# Git ignores this folder.
STATE_DIR = BASE_DIR / ".postgres"

# A demo for one's own machine: with DEBUG=0 somebody else must serve the static files.
DEBUG = os.environ.get("DEBUG", "1") != "0"

ALLOWED_HOSTS = ["localhost", "127.0.0.1", "[::1]"]


def secret_key() -> str:
    """Return SECRET_KEY of the environment, or one that is made at the first start."""
    if key := os.environ.get("SECRET_KEY"):
        return key
    path = STATE_DIR / "secret_key"
    STATE_DIR.mkdir(exist_ok=True)
    try:
        with open(path, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(secrets.token_urlsafe(50))
    except FileExistsError:
        pass
    return path.read_text()


SECRET_KEY = secret_key()

INSTALLED_APPS = [
    # First, so that it is loaded before what uses it.
    "pgbackend",
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "pgtrigger",
    "pgbackend.pubsub",
    "kitchen",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "proj.urls"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

ASGI_APPLICATION = "proj.asgi.application"
WSGI_APPLICATION = "proj.wsgi.application"


def database_from_url(url: str) -> dict[str, Any]:
    """Return the settings for postgresql://user:password@host:port/name?option=value.

    libpq reads the address itself: sockets, several hosts and its own options work as they do
    in psql. See https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING.
    """
    try:
        if not url.startswith(("postgresql://", "postgres://")):
            raise psycopg.ProgrammingError
        options = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        # What libpq says may quote the password.
        raise ImproperlyConfigured(
            "DATABASE_URL is not an address of PostgreSQL: write it as "
            "postgresql://user:password@host:5432/name, with %XX for special characters "
            "(@ is %40), or unset it."
        ) from None
    user = options.pop("user", "")
    return {
        "NAME": options.pop("dbname", "") or user or getpass.getuser(),
        "USER": user,
        "PASSWORD": options.pop("password", ""),
        "HOST": options.pop("host", ""),
        "PORT": options.pop("port", ""),
        "OPTIONS": options,
    }


def database_from_variables(environ: dict[str, str]) -> dict[str, Any]:
    """Return the settings for psql's variables PGHOST, PGPORT, PGUSER and so on."""
    service = environ.get("PGSERVICE")
    user = environ.get("PGUSER", "")
    return {
        # A service names its database itself.
        "NAME": environ.get("PGDATABASE") or ("" if service else user or getpass.getuser()),
        "USER": user,
        "PASSWORD": environ.get("PGPASSWORD", ""),
        "HOST": environ.get("PGHOST", ""),
        "PORT": environ.get("PGPORT", ""),
        "OPTIONS": {"service": service} if service else {},
    }


def embedded_database() -> dict[str, Any]:
    server = postgres.start(STATE_DIR)
    return {
        "NAME": server.dbname,
        "USER": server.user,
        "PASSWORD": server.password,
        "HOST": server.host,
        "PORT": server.port,
        "OPTIONS": {},
    }


def database() -> dict[str, Any]:
    if url := os.environ.get("DATABASE_URL"):
        return database_from_url(url)
    names = ["PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE", "PGSERVICE"]
    if given := {name: os.environ[name] for name in names if os.environ.get(name)}:
        return database_from_variables(given)
    return embedded_database()


# Each request is one transaction, also where the view is asynchronous.
DATABASES = {"default": {"ENGINE": "pgbackend", "ATOMIC_REQUESTS": True, **database()}}

# `python -m proj test kitchen` runs synchronous and asynchronous tests in the bridge.
TEST_RUNNER = "pgbackend.test.DiscoverRunner"

DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_I18N = True
USE_TZ = True

STATIC_URL = "static/"

# The kitchen's tickets are told on the terminal; the rest of the logging is Django's.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"terminal": {"class": "logging.StreamHandler"}},
    # `listen` has a handler for all loggers, which would tell of them once more.
    "loggers": {"kitchen": {"handlers": ["terminal"], "level": "INFO", "propagate": False}},
}
