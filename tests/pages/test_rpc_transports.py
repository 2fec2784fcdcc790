"""The how-to page of the transports: its settings give what it says."""

from __future__ import annotations

import pytest
from django.test import override_settings
from django.urls import path

from pgbackend.rpc.server.view import rpc_view
from pgbackend.rpc.service import Service
from tests.pages.examples import example

PAGE = "docs/howto/rpc-transports.md"
POSTGRES = example(PAGE, '"TRANSPORT": "postgres"')
WORKER = example(PAGE, "PGBACKEND_RPC")
CELERY = example(PAGE, '"BROKER_URL": "redis://broker.example/0",\n        "KEYS"')
HTTP = example(PAGE, "urlpatterns")


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RPC_KEY", "a secret of the tests, 32 bytes or more")


def test_postgres() -> None:
    """The client's settings make a transport to that database."""
    pytest.importorskip("pgtrigger")
    transport = Service("rpc", POSTGRES.settings()["DATABASES"]["rpc"]).transport
    assert type(transport).__name__ == "PostgresTransport"
    assert vars(transport)["database"] == "postgresql://till@kitchen.example/kitchen"


def test_celery() -> None:
    """Client and worker have the same broker, results and queues."""
    pytest.importorskip("celery")
    from celery import Celery

    from pgbackend.rpc.transports.celery import TASK
    from pgbackend.rpc.transports.celery_service import make_app

    transport = Service("rpc", CELERY.settings()["DATABASES"]["rpc"]).transport
    with override_settings(**WORKER.settings()):
        conf = make_app().conf
    assert vars(transport)["broker"] == conf.broker_url
    assert vars(transport)["results"] == conf.result_backend
    assert [each.name for each in conf.task_queues] == ["rpc", "rpc.high"]
    assert conf.worker_pool == "solo"
    # Not shared with other applications of the process: their workers cannot answer messages.
    assert TASK not in Celery("another", set_as_current=False).tasks


def test_http() -> None:
    """The view is where the page has it."""
    (found,) = HTTP.run().urlpatterns
    assert found.callback is rpc_view
    assert str(found.pattern) == str(path("rpc/", rpc_view).pattern)
