"""Creation of test databases, which idle pooled connections must not block."""

from typing import Any

from django.db import connections
from django.db.backends.postgresql.creation import (
    DatabaseCreation as PostgresDatabaseCreation,
)

from .pool.dedicated import retire_all


class DatabaseCreation(PostgresDatabaseCreation):
    """Django's creation of test databases."""

    def _create_test_db(self, *args: Any, **kwargs: Any) -> str:
        """Create the test database; close the pool of the alias's previous database.

        Django closes its one connection before the alias gets another NAME. Here the pool has the
        connections, and nothing would use that pool again.
        """
        self.connection.close_pool()
        name: str = super()._create_test_db(*args, **kwargs)
        return name

    def _destroy_test_db(self, test_database_name: str, verbosity: int) -> None:
        """Remove the test database; close the pools and listening connections that use it.

        Django closes the connections of the alias itself, and knows none of other aliases by then.
        Here their pools may have idle connections, and PostgreSQL removes no database that is in
        use.
        """
        retire_all(test_database_name)
        key = self.test_db_signature()[:2]
        for other in connections.all(initialized_only=True):
            creation = other.creation
            if isinstance(creation, DatabaseCreation) and other is not self.connection:
                same_server = creation.test_db_signature()[:2] == key
                if same_server and other.settings_dict["NAME"] == test_database_name:
                    other.close()
                    other.close_pool()
        super()._destroy_test_db(test_database_name, verbosity)
