"""Django's own command-line client, where backends derived from this one look for it."""

from django.db.backends.postgresql.client import DatabaseClient

__all__ = ["DatabaseClient"]
