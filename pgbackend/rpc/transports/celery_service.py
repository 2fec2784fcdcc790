"""The configuration of the service's Celery application."""

from __future__ import annotations

import os

import django
from celery import Celery
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured

from ... import conf
from .celery import CONNECT_TIMEOUT, DEFAULT_QUEUE, PRIORITY_QUEUE, TASK, is_redis, queues
from .celery_worker import LEASE, ListenStep, ServeStep
from .results import CeleryResults, RedisResults
from .serving import CONCURRENCY, Handle, Serving, handle_of_service

# How long a result that nobody fetches is kept, seconds.
KEEP = 120

# How long a broker may be silent where it is to answer, seconds.
SOCKET_TIMEOUT = 10.0

# How often the Redis is asked for what nobody acknowledged within `LEASE`, seconds.
_RESTORE = 2.0


def make_app(handle: Handle | None = None) -> Celery:
    """Return the application; it reads ``PGBACKEND_RPC`` of the project's settings.

    *handle* answers a message; None: the service of the project, by what it exposes. Raise
    ImproperlyConfigured where no broker is named.
    """
    if not settings.configured and "DJANGO_SETTINGS_MODULE" not in os.environ:
        raise ImproperlyConfigured(
            "Set DJANGO_SETTINGS_MODULE to the settings of the service, whose models are exposed"
        )
    django.setup()
    chosen = conf.rpc()
    broker = chosen.get("BROKER_URL")
    if not broker:
        raise ImproperlyConfigured(
            'PGBACKEND_RPC has no "BROKER_URL": name the Redis or the RabbitMQ, as in'
            " redis://localhost/"
        )
    default = chosen.get("DEFAULT_QUEUE_NAME", DEFAULT_QUEUE)
    priority = chosen.get("PRIORITY_QUEUE_NAME", PRIORITY_QUEUE)
    at_once = int(chosen.get("CONCURRENCY", CONCURRENCY))
    results = chosen.get("RESULT_BACKEND") or (broker if is_redis(broker) else "rpc://")
    app = Celery("pgbackend.rpc", broker=broker, backend=results, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        result_expires=KEEP,
        task_queues=queues(default, priority),
        task_default_queue=default,
        rpc_priority_queue=priority,
        task_acks_late=True,
        # The pool has nothing to do; what is fetched ahead waits in `Serving`, the urgent first.
        worker_pool="solo",
        worker_concurrency=1,
        worker_prefetch_multiplier=2 * at_once,
        worker_enable_prefetch_count_reduction=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
    )
    if is_redis(broker):
        app.conf.broker_transport = "pgbackend.rpc.transports.redis_broker:Transport"
        app.conf.broker_transport_options = {
            # No wait of kombu's own is longer than a second.
            "socket_timeout": SOCKET_TIMEOUT,
            "socket_connect_timeout": CONNECT_TIMEOUT,
            "socket_keepalive": True,
            "visibility_timeout": LEASE,
            "unacked_restore_interval": _RESTORE,
            "unacked_restore_throttle": 1,
            # Of the lock of whoever gives messages back, which may be killed meanwhile.
            "unacked_mutex_expire": 10,
        }
    app.steps["worker"].add(ServeStep)
    app.steps["consumer"].add(ListenStep)

    def answer(wire: str) -> str:
        """Answer one message in the calling thread, where Celery itself runs the task."""
        return (handle or handle_of_service())(wire, redelivered=False)

    # Celery gives a task that is shared to all applications of the process; their workers have no
    # such parts.
    strategy = "pgbackend.rpc.transports.celery_worker:strategy"
    app.task(name=TASK, Strategy=strategy, shared=False)(answer)
    # The parts of a worker find it here.
    app.rpc_service = lambda: (
        Serving(handle or handle_of_service(), at_once),
        RedisResults(results, KEEP) if is_redis(results) else CeleryResults(app.backend),
    )
    return app
