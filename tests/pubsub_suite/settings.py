"""Settings for django-pgpubsub's own tests. The runner sets the environment first."""

import os

import tests.pubsub_suite.shim as shim
from tests.django_suite.settings import ENGINES
from tests.settings import database

MODE = os.environ["SUITE_MODE"]

shim.install(os.environ["SUITE_SOURCES"])

DATABASES = {"default": {**database(f"pubsub_{MODE}"), "ENGINE": ENGINES[MODE]}}
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "pgtrigger",
    "pgbackend.pubsub",
    "pgpubsub.tests",
]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
# Some tests set a context in a transaction and never take it back, and the next ones expect none.
PGPUBSUB_TX_BOUND_NOTIFICATION_CONTEXT = True
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
SECRET_KEY = "pubsub"
USE_TZ = False
