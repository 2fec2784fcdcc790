"""Django's own introspection, under the name where backends over this one look for it."""

# First: Django's own module cannot be the first of its backend that is imported. (6.1.)
from django.db.backends.postgresql import base as base
from django.db.backends.postgresql.introspection import DatabaseIntrospection, FieldInfo, TableInfo

__all__ = ["DatabaseIntrospection", "FieldInfo", "TableInfo"]
