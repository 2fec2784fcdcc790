"""Django's own schema editor, where backends derived from this one look for it."""

from django.db.backends.postgresql.schema import DatabaseSchemaEditor

__all__ = ["DatabaseSchemaEditor"]
