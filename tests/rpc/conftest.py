"""The service in tests/rpc/site as the alias "rpc", by each transport."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.conf import settings
from django.db import connections
from django.test import override_settings

from pgbackend.rpc.client import Client
from pgbackend.rpc.server.settings import service as service_settings
from pgbackend.rpc.service import service_of
from tests.support.brokers import end_shared
from tests.support.rpc import TRANSPORTS, alias


@pytest.fixture(scope="package", autouse=True)
def router() -> Iterator[None]:
    """The router of a project that has models of a service."""
    routers = ["pgbackend.rpc.RpcRouter", *settings.DATABASE_ROUTERS]
    with override_settings(DATABASE_ROUTERS=routers):
        yield


@pytest.fixture(scope="package", autouse=True)
def no_broker_left() -> Iterator[None]:
    """What the tests of remote querysets have started ends with them."""
    yield
    end_shared()


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=() if name == "local" else (pytest.mark.load, pytest.mark.process))
        for name in TRANSPORTS
    ],
)
def served(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    """The settings of an alias whose service runs, by one transport."""
    with TRANSPORTS[request.param]() as conf:
        yield conf


@pytest.fixture
def service(served: dict[str, Any]) -> Iterator[str]:
    """The alias of the service, by one transport."""
    with alias(**served) as name:
        yield name


@pytest.fixture
def plain(service: str) -> Iterator[Client]:
    """A client without Django, by the transport of the alias."""
    transport = service_of(service, connections.settings[service]).transport
    made = Client(transport, service_settings().keys, principal="chef", timeout=60)
    yield made
    made.close()


@pytest.fixture
def nowhere() -> Iterator[str]:
    """An alias whose service has no principal and no message: nothing is sent."""
    with alias(TRANSPORT="local", TIMEOUT=1.0) as name:
        yield name
