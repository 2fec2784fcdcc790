"""Routes the model `Elsewhere` to the second database."""

from typing import Any


class OtherRouter:
    """Keep `tests.Elsewhere`, and nothing else, on the alias ``other``."""

    def _alias(self, model: Any, **hints: Any) -> str | None:
        return "other" if model._meta.model_name == "elsewhere" else None

    db_for_read = db_for_write = _alias

    def allow_migrate(self, db: str, app_label: str, model_name: str = "", **hints: Any) -> bool:
        return (model_name == "elsewhere") == (db == "other")
