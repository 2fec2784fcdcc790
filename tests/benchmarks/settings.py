"""Settings for every peer that is Django: `startproject`'s, and a database by the environment.

BENCH_DSN is the server's address; BENCH_ENGINE, BENCH_OPTIONS (JSON), BENCH_APPS and
BENCH_NAME, the connections' application_name, are the peer's.
"""

import json
import os
from urllib.parse import unquote, urlsplit

_dsn = urlsplit(os.environ["BENCH_DSN"])

DATABASES = {
    "default": {
        "ENGINE": os.environ["BENCH_ENGINE"],
        "NAME": _dsn.path.strip("/"),
        "USER": unquote(_dsn.username or ""),
        "PASSWORD": unquote(_dsn.password or ""),
        "HOST": _dsn.hostname,
        "PORT": _dsn.port,
        # None: connections that are kept for good, as a thread of a WSGI server may.
        "CONN_MAX_AGE": json.loads(os.environ.get("BENCH_MAX_AGE", "0")),
        "OPTIONS": {
            "application_name": os.environ["BENCH_NAME"],
            **json.loads(os.environ["BENCH_OPTIONS"]),
        },
    }
}

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    *json.loads(os.environ.get("BENCH_APPS", "[]")),
    "tests.benchmarks",
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

ROOT_URLCONF = "tests.benchmarks.site"

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
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

DEBUG = False
ALLOWED_HOSTS = ["127.0.0.1"]
SECRET_KEY = "benchmarks"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
STATIC_URL = "static/"
USE_TZ = True
