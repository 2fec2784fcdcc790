"""The ways to the service of tests/rpc/site, which the tests of clients run over."""

import contextlib
from collections.abc import Iterator
from typing import Any

from django.db import connections

from pgbackend.rpc.service import forget


@contextlib.contextmanager
def local() -> Iterator[dict[str, Any]]:
    """The service in this process, through its messages."""
    yield {"TRANSPORT": "local"}


# By name, what returns the settings of an alias while its service runs.
TRANSPORTS = {"local": local}


@contextlib.contextmanager
def alias(name: str = "rpc", **conf: Any) -> Iterator[str]:
    """Add an alias of a service to DATABASES; *conf* has its settings beside the engine."""
    template = connections.settings["default"]
    defaults = {"NAME": "", "USER": "", "PASSWORD": "", "HOST": "", "PORT": "", "OPTIONS": {}}
    connections.settings[name] = {
        **template,
        **defaults,
        "ENGINE": "pgbackend.rpc",
        "TIMEOUT": 60.0,
        # For whom all rows of the service are visible.
        "PRINCIPAL": "chef",
        **conf,
    }
    try:
        yield name
    finally:
        forget([name])
        with contextlib.suppress(AttributeError):
            del connections[name]
        del connections.settings[name]
