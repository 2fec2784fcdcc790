"""Django's own introspection, where backends derived from this one look for it."""

# Import Django's base first: in 6.1 its introspection module cannot be its backend's first import.
from django.db.backends.postgresql import base as base
from django.db.backends.postgresql.introspection import DatabaseIntrospection, FieldInfo, TableInfo

__all__ = ["DatabaseIntrospection", "FieldInfo", "TableInfo"]
