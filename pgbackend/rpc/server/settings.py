"""The setting ``PGBACKEND_RPC`` of a project that serves its models: one dictionary.

================  ============  ==================================================================
name              default       meaning
================  ============  ==================================================================
``KEYS``          required      secrets of 32 bytes and more, by the ids of the keys
``KEY``           the first     the id of the key that seals where nothing else says which
``PRINCIPALS``    {}            by key: the names that its holder may speak for; None: all
``PRINCIPAL``     None          dotted path of a function (name, key id) that returns the principal,
                                which `expose`'s functions are called with; None: the name
``LIMITS``        {}            `protocol.limits.Limits`, by name
``DATABASE``      "default"     the alias with the server's own tables
``LISTEN``        ``DATABASE``  the alias with messages of the transport "postgres", which those who
                                listen to the project's channels answer; None: nobody does, as
                                where ``pgbackend.pubsub`` is not installed
``TRACEBACKS``    False         errors have the traceback in their details: for development
================  ============  ==================================================================

The transports read further names from it: docs/howto/rpc-transports.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.db import DEFAULT_DB_ALIAS
from django.utils.module_loading import import_string

from ... import conf
from ..protocol.keys import Keys
from ..protocol.limits import Limits

NAME = "PGBACKEND_RPC"


def _same(name: str | None, key_id: str) -> Any:
    """Return the principal's name itself."""
    return name


@dataclass(frozen=True)
class Service:
    """What the setting says."""

    keys: Keys
    limits: Limits
    # From the name in the message and the key's id to what `expose`'s functions are given.
    principal: Callable[[str | None, str], Any]
    database: str
    tracebacks: bool


_service: Service | None = None


def service() -> Service:
    """Return the service of this project; raise ImproperlyConfigured."""
    global _service
    if _service is None:
        _service = _read()
    return _service


def read(name: str, default: Any = None) -> Any:
    """Return an entry of ``PGBACKEND_RPC``; raise ImproperlyConfigured if that is no dictionary."""
    return conf.rpc().get(name, default)


def listens() -> str | None:
    """Return the alias whose stored messages this project answers; raise ImproperlyConfigured."""
    if apps.is_installed("pgbackend.pubsub"):
        alias: str | None = read("LISTEN", read("DATABASE", DEFAULT_DB_ALIAS))
        return alias
    if (alias := read("LISTEN")) is not None:
        raise ImproperlyConfigured(
            f'{NAME}["LISTEN"] is {alias!r}, but "pgbackend.pubsub" is not installed: it has'
            " the table of the messages"
        )
    return None


def _read() -> Service:
    path = read("PRINCIPAL")
    tracebacks = read("TRACEBACKS", False)
    if not isinstance(tracebacks, bool):
        raise ImproperlyConfigured(f'{NAME}["TRACEBACKS"] is True or False, not {tracebacks!r}')
    try:
        keys = Keys.from_settings(conf.rpc())
        limits = Limits(**read("LIMITS", {}))
    except (TypeError, ValueError) as error:
        raise ImproperlyConfigured(f"{NAME}: {error}") from error
    return Service(
        keys=keys,
        limits=limits,
        principal=import_string(path) if path is not None else _same,
        database=read("DATABASE", DEFAULT_DB_ALIAS),
        tracebacks=tracebacks,
    )


def _forget(*, setting: str, **kwargs: Any) -> None:
    """Read the setting anew where a test changes it."""
    global _service
    if setting == NAME:
        _service = None


setting_changed.connect(_forget, dispatch_uid="pgbackend.rpc.server.settings")
