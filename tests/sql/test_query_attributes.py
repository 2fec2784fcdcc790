"""Attributes of queries that nobody has looked at."""

from __future__ import annotations

from typing import Any

from django.db.models.sql import Query

from pgbackend.sql import query_attributes


def test_unknown_queries() -> None:
    """What a query of a Django to come has more than these, at its class or itself, is noticed."""

    class Later(Query):
        hint = None

        def __init__(self, model: Any) -> None:
            super().__init__(model)
            self.lateral: dict[str, Any] = {}

    assert query_attributes.unknown_attributes(Query) == set()
    assert query_attributes.unknown_attributes(Later) == {"hint", "lateral"}
