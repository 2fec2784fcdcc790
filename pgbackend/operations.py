"""Operations: where Django finds the compilers."""

from django.db.backends.postgresql.operations import (
    DatabaseOperations as PostgresDatabaseOperations,
)


class DatabaseOperations(PostgresDatabaseOperations):
    """Django's PostgreSQL operations with this backend's compilers."""

    compiler_module = "pgbackend.compiler"
