"""Operations: where Django finds the compilers; savepoints leave a session as it was."""

from django.db.backends.postgresql.operations import (
    DatabaseOperations as PostgresDatabaseOperations,
)

from .session import CleanSQL


class DatabaseOperations(PostgresDatabaseOperations):
    """Django's PostgreSQL operations with this backend's compilers."""

    compiler_module = "pgbackend.compiler"

    def savepoint_create_sql(self, sid: str) -> str:
        return CleanSQL(super().savepoint_create_sql(sid))

    def savepoint_commit_sql(self, sid: str) -> str:
        return CleanSQL(super().savepoint_commit_sql(sid))

    def savepoint_rollback_sql(self, sid: str) -> str:
        return CleanSQL(super().savepoint_rollback_sql(sid))
