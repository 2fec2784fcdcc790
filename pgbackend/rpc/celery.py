"""The Celery application of a service: ``celery -A pgbackend.rpc.celery worker -Q rpc,rpc.high``.

Run it in the service's project, with ``DJANGO_SETTINGS_MODULE`` set. It answers the messages of
clients, many at once on one event loop, by what the project exposes. The broker is what
``PGBACKEND_RPC`` says: see `transports.celery`.
"""

from __future__ import annotations

from .transports.celery_service import make_app

app = make_app()
