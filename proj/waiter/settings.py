"""Settings of the waiter's terminal, which has no database.

Messages to the kitchen go through the kitchen's PostgreSQL: they are rows of one table, and nothing
else there is read or written. With BROKER_URL they go through Celery, by that Redis or RabbitMQ.
"""

import os
from typing import Any

from psycopg.conninfo import make_conninfo

from proj.environment import BASE_DIR, database, kept_secret

DEBUG = os.environ.get("DEBUG", "1") != "0"

ALLOWED_HOSTS = ["localhost", "127.0.0.1", "[::1]"]

SECRET_KEY = kept_secret("SECRET_KEY")

INSTALLED_APPS = ["pgbackend.rpc", "django.contrib.staticfiles", "proj.waiter"]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

ROOT_URLCONF = "proj.waiter.urls"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {"context_processors": ["django.template.context_processors.request"]},
    },
]

ASGI_APPLICATION = "proj.waiter.asgi.application"


def transport() -> dict[str, Any]:
    """Return how messages get to the kitchen."""
    if broker := os.environ.get("BROKER_URL"):
        return {"TRANSPORT": "celery", "BROKER_URL": broker}
    kitchen = database()
    places = {"dbname": "NAME", "user": "USER", "password": "PASSWORD"}
    places |= {"host": "HOST", "port": "PORT"}
    given = {name: kitchen[key] for name, key in places.items() if kitchen[key]}
    return {"TRANSPORT": "postgres", "DATABASE": make_conninfo(**given, **kitchen["OPTIONS"])}


DATABASES = {
    # None of its own.
    "default": {},
    "rpc": {
        "ENGINE": "pgbackend.rpc",
        "KEYS": {"waiter": kept_secret("RPC_KEY")},
        "CLIENT": "waiter's terminal",
        # Seconds that a page waits for the kitchen.
        "TIMEOUT": 5,
        **transport(),
    },
}

DATABASE_ROUTERS = ["pgbackend.rpc.RpcRouter"]

# Cookies know no ports: the kitchen's site would take this one's for its own.
CSRF_COOKIE_NAME = "waiter_csrftoken"

LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_TZ = True

STATIC_URL = "static/"
# The kitchen's style; its application is not installed here.
STATICFILES_DIRS = [BASE_DIR / "kitchen" / "static"]
