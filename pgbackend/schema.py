"""Django's own schema editor, under the name where backends over this one look for it."""

from django.db.backends.postgresql.schema import DatabaseSchemaEditor

__all__ = ["DatabaseSchemaEditor"]
