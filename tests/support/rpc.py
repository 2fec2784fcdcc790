"""The ways to the service of tests/rpc/site, which the tests of clients run over."""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

from django.conf import settings
from django.db import connections

from pgbackend.rpc.service import forget
from tests.support.rpc_services import SERVICES


@contextlib.contextmanager
def local() -> Iterator[dict[str, Any]]:
    """The service in this process, through its messages."""
    yield {"TRANSPORT": "local"}


@contextlib.contextmanager
def beside(name: str) -> Iterator[dict[str, Any]]:
    """The service in a process of its own, by a transport of `rpc_services.SERVICES`."""
    with SERVICES[name](real=True) as service, service.running():
        keys = settings.PGBACKEND_RPC["KEYS"]
        yield {**service.settings(), "KEYS": keys, "KEY": "k1"}


# By name, what returns the settings of an alias while its service runs.
TRANSPORTS = {"local": local, **{name: partial(beside, name) for name in SERVICES}}


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
