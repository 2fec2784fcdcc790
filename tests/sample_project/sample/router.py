"""Keeps visits on the second database."""

from typing import Any


class Router:
    def _alias(self, model: Any, **hints: Any) -> str:
        return "other" if model._meta.model_name == "visit" else "default"

    db_for_read = db_for_write = _alias

    def allow_migrate(self, db: str, app_label: str, model_name: str = "", **hints: Any) -> bool:
        return db == "lite" or (model_name == "visit") == (db == "other")
