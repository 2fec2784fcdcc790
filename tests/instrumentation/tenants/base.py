"""A wrapper with a tenant, each in a schema of its own, as django-tenants' wrapper has."""

from __future__ import annotations

from typing import Any

from pgbackend import base


class DatabaseWrapper(base.DatabaseWrapper):
    """Sets the search path on each cursor before it hands it out."""

    schema_name = "public"

    # Keeps the cursor that sets the search path from doing so first.
    setting_search_path = False

    def set_schema(self, name: str) -> None:
        """Let what the wrapper's cursors execute from now on belong to the schema *name*."""
        self.schema_name = name

    def _cursor(self, name: str | None = None) -> Any:
        cursor = super()._cursor(name)
        if self.setting_search_path:
            return cursor
        self.setting_search_path = True
        try:
            # A server-side cursor executes one statement only.
            setting = cursor if name is None else self.connection.cursor()
            setting.execute(f"SET search_path TO {self.schema_name}, public")
        finally:
            self.setting_search_path = False
        return cursor
