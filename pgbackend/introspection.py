"""Django's own introspection, under the name where backends over this one look for it."""

from django.db.backends.postgresql.introspection import DatabaseIntrospection, FieldInfo, TableInfo

__all__ = ["DatabaseIntrospection", "FieldInfo", "TableInfo"]
