"""Creation of test databases: idle pooled connections must not be in the way."""

from typing import Any

from django.db.backends.postgresql.creation import (
    DatabaseCreation as PostgresDatabaseCreation,
)


class DatabaseCreation(PostgresDatabaseCreation):
    """Django's creation of test databases."""

    def _create_test_db(self, *args: Any, **kwargs: Any) -> str:
        """Create the test database; close the pool of the one that the alias has had.

        Django closes its one connection before the alias gets another NAME; here the pool
        has them, and nothing would use that pool again.
        """
        self.connection.close_pool()
        name: str = super()._create_test_db(*args, **kwargs)
        return name
