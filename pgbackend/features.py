"""Features: which of Django's own tests cannot pass inside the bridge, and why."""

from __future__ import annotations

from typing import Any

from django.db.backends.postgresql.features import (
    DatabaseFeatures as PostgresDatabaseFeatures,
)
from django.utils.functional import cached_property

# Skipped only where the whole test runner runs bridged.
_BRIDGED_TEST_SKIPS = {
    "asyncio.run() is refused on a running event loop, and the bridge is on one.": {
        "async.tests.ViewTests.test_http_method_not_allowed_responds_correctly",
        "async.tests.ViewTests.test_options_handler_responds_correctly",
    },
    "What bridged code awaits may use the synchronous ORM, which is the bridge's purpose.": {
        "async.tests.DatabaseConnectionTest.test_get_async_connection",
    },
}


class DatabaseFeatures(PostgresDatabaseFeatures):
    """Django's PostgreSQL features."""

    @cached_property  # type: ignore[untyped-decorator]  # Django is untyped
    def django_test_skips(self) -> dict[str, Any]:
        """Django's own skips and, bridged, those of this design."""
        skips: dict[str, Any] = super().django_test_skips
        return {**skips, **_BRIDGED_TEST_SKIPS} if self.connection.bridged else skips
