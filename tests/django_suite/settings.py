"""Settings for Django's own tests. The runner sets the environment first."""

import os

import django

from tests.settings import database

ENGINES = {
    "bridged": "pgbackend",
    "plain": "pgbackend",
    "stock": "django.db.backends.postgresql",
}
MODE = os.environ["SUITE_MODE"]

DATABASES = {
    alias: {**database(f"django_{MODE}_{alias}"), "ENGINE": ENGINES[MODE]}
    for alias in ("default", "other")
}
for _database in DATABASES.values():
    _database["OPTIONS"] = eval(os.environ["SUITE_OPTIONS"])
TEST_RUNNER = "tests.django_suite.runner.Runner"
if django.VERSION < (6, 0):
    DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
SECRET_KEY = "django_tests_secret_key"
USE_TZ = False
