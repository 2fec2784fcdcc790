"""Creation of test databases: idle pooled connections must not be in the way."""

from typing import Any

from django.db import connections
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

    def _destroy_test_db(self, test_database_name: str, verbosity: int) -> None:
        """Remove the test database; close the pools of all aliases that are of the same one.

        Django closes the alias's own. Of the others it knows no connection by then; here their
        pools have idle ones, and PostgreSQL removes no database that somebody is connected to.
        """
        key = self.test_db_signature()[:2]
        for other in connections.all(initialized_only=True):
            creation = other.creation
            if isinstance(creation, DatabaseCreation) and other is not self.connection:
                same_server = creation.test_db_signature()[:2] == key
                if same_server and other.settings_dict["NAME"] == test_database_name:
                    other.close()
                    other.close_pool()
        super()._destroy_test_db(test_database_name, verbosity)
