"""Operations: the compilers' location for Django, and savepoints marked as clean."""

from __future__ import annotations

import functools
from importlib import import_module
from typing import Any

# Import Django's base first: its operations module cannot be its backend's first import.
from django.db.backends.postgresql import base as base
from django.db.backends.postgresql.operations import (
    DatabaseOperations as PostgresDatabaseOperations,
)

from .session.clean import CleanSQL


@functools.cache
def _compiler(module: str, name: str) -> Any:
    return getattr(import_module(module), name)


class DatabaseOperations(PostgresDatabaseOperations):
    """Django's PostgreSQL operations with this backend's compilers."""

    compiler_module = "pgbackend.compiler"

    def compiler(self, compiler_name: str) -> Any:
        """Return a compiler's class; it is looked up once, not for each task's wrapper."""
        return _compiler(self.compiler_module, compiler_name)

    def savepoint_create_sql(self, sid: str) -> str:
        return CleanSQL(super().savepoint_create_sql(sid))

    def savepoint_commit_sql(self, sid: str) -> str:
        return CleanSQL(super().savepoint_commit_sql(sid))

    def savepoint_rollback_sql(self, sid: str) -> str:
        return CleanSQL(super().savepoint_rollback_sql(sid))
