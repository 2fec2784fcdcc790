"""Migrations that leave out models of services.

Django tracks unmanaged models in migrations: that they are there (all versions), and each of their
fields (6.2). A model of a service is not this project's to track.
"""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.db.migrations.autodetector import MigrationAutodetector

from .router import database_of


class RpcAutodetector(MigrationAutodetector):
    """Django's, without the models of services on either side."""

    def __init__(self, from_state: Any, to_state: Any, questioner: Any = None) -> None:
        for label, name in list(to_state.models):
            if _is_of_a_service(label, name):
                to_state.remove_model(label, name)
                # A migration from before has it: it stays as it is, and none deletes it.
                if (label, name) in from_state.models:
                    from_state.remove_model(label, name)
        super().__init__(from_state, to_state, questioner)


def _is_of_a_service(label: str, name: str) -> bool:
    try:
        model = apps.get_model(label, name)
    except LookupError:
        return False
    return database_of(model) is not None
