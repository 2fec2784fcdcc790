"""Django's own command-line client, under the name where backends over this one look for it."""

from django.db.backends.postgresql.client import DatabaseClient

__all__ = ["DatabaseClient"]
