"""Features: which of Django's own tests cannot pass inside the bridge, and why."""

from __future__ import annotations

from typing import Any

from django.db.backends.postgresql.features import (
    DatabaseFeatures as PostgresDatabaseFeatures,
)
from django.utils.functional import cached_property

# Skipped wherever Django's suite runs on this backend.
TEST_SKIPS = {
    "ATOMIC_REQUESTS holds for asynchronous views, which Django refuses.": {
        "handlers.tests.TransactionsPerRequestTests.test_auto_transaction_async_view",
    },
    "A transaction that the server rolls back at COMMIT fails, where Django reports success.": {
        "postgres_tests.test_operations.ValidateConstraintTests.test_validate",
        "schema.tests.SchemaTests.test_alter_array_field_decrease_base_field_length",
        "schema.tests.SchemaTests.test_alter_array_field_decrease_nested_base_field_length",
        "schema.tests.SchemaTests.test_alter_char_field_decrease_length",
        "schema.tests.SchemaTests.test_func_index_nondeterministic",
        "schema.tests.SchemaTests.test_func_unique_constraint_nondeterministic",
    },
}

# Skipped only where the whole test run is bridged.
BRIDGED_TEST_SKIPS = {
    "Between two statements outside a transaction no connection is held in the bridge.": {
        "backends.base.test_base.ConnectionHealthChecksTests.test_health_checks_enabled",
        "backends.base.test_base.ConnectionHealthChecksTests"
        ".test_set_autocommit_health_checks_enabled",
        "backends.postgresql.tests.Tests.test_bypass_timezone_configuration",
        "backends.tests.ConnectionCreatedSignalTest.test_signal",
        "test_utils.tests.AssertNumQueriesUponConnectionTests"
        ".test_ignores_connection_configuration_queries",
    },
    "In the bridge a pool connects; BaseDatabaseWrapper.connect(), which they replace, does not.": {
        "backends.postgresql.tests.Tests.test_nodb_cursor",
        "backends.postgresql.tests.Tests.test_nodb_cursor_raises_postgres_authentication_failure",
    },
    "A connection that a task on the loop has on loan is not another thread's to close.": {
        "servers.test_liveserverthread.LiveServerThreadTest.test_closes_connections",
        "servers.tests.LiveServerTestCloseConnectionTest.test_closes_connections",
    },
    "What bridged code awaits may use the synchronous ORM, which is the bridge's purpose.": {
        "async.tests.DatabaseConnectionTest.test_get_async_connection",
    },
}


class DatabaseFeatures(PostgresDatabaseFeatures):
    """Django's PostgreSQL features."""

    @cached_property  # type: ignore[untyped-decorator]  # Django is untyped
    def django_test_skips(self) -> dict[str, Any]:
        """Django's own skips and, bridged, those of this backend's design."""
        skips: dict[str, Any] = super().django_test_skips
        ours = {**TEST_SKIPS, **(BRIDGED_TEST_SKIPS if self.connection.bridged else {})}
        return {**skips, **ours}
