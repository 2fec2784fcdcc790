"""Settings for Django's own tests. The runner sets PGBACKEND_TEST_DSN first."""

import os

from tests.settings import database

ENGINE = os.environ.get("SUITE_ENGINE", "pgbackend")

DATABASES = {
    alias: {**database(f"django_{alias}"), "ENGINE": ENGINE} for alias in ("default", "other")
}
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
SECRET_KEY = "django_tests_secret_key"
USE_TZ = False
