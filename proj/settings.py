"""Settings of the example project."""

import os

from proj.environment import database, kept_secret

# A demo for one's own machine: with DEBUG=0 somebody else must serve the static files.
DEBUG = os.environ.get("DEBUG", "1") != "0"

ALLOWED_HOSTS = ["localhost", "127.0.0.1", "[::1]"]

SECRET_KEY = kept_secret("SECRET_KEY")

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
    "pgbackend.rpc.server",
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


# Each request is one transaction, also where the view is asynchronous.
DATABASES = {"default": {"ENGINE": "pgbackend", "ATOMIC_REQUESTS": True, **database()}}

# What `kitchen/rpc.py` exposes is for the waiter's terminal, whose key speaks for no one else. Its
# messages come through the table of stored notifications, whose listeners answer them; or through
# the Redis or RabbitMQ of BROKER_URL, to `celery -A pgbackend.rpc.celery worker -Q rpc,rpc.high`.
PGBACKEND_RPC = {
    "KEYS": {"waiter": kept_secret("RPC_KEY")},
    "PRINCIPALS": {"waiter": ["waiter"]},
    "BROKER_URL": os.environ.get("BROKER_URL"),
}

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
