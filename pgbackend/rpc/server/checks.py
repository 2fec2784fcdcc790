"""Checks of what a project exposes, and of its setting ``PGBACKEND_RPC``."""

from __future__ import annotations

from typing import Any

from django.core import checks
from django.core.exceptions import ImproperlyConfigured

from . import registry, settings


def register() -> None:
    """Have `check_exposures` and `check_setting` run by ``manage.py check``."""
    checks.register(check_exposures)
    checks.register(check_setting)


def check_exposures(app_configs: Any = None, **_options: Any) -> list[Any]:
    """Return what is wrong in the calls of `expose`."""
    return [checks.Error(text, id="pgbackend.rpc.E011") for text in registry.problems()]


def check_setting(app_configs: Any = None, **_options: Any) -> list[Any]:
    """Return what is wrong in the setting."""
    try:
        settings.service()
    except (ImproperlyConfigured, ImportError) as error:
        return [checks.Error(str(error), id="pgbackend.rpc.E012")]
    return []
