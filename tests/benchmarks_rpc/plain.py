"""An application of Celery as its guide has it: the defaults, and tasks that answer at once."""

import os
from typing import Any

import django
from celery import Celery

app = Celery("plain", broker=os.environ["BENCH_BROKER"], backend=os.environ["BENCH_BROKER"])
# As Celery does for a project of Django's.
django.setup()


@app.task
def echo(pk: int) -> dict[str, Any]:
    """Answer what a read would, without one."""
    return {"id": pk, "name": f"station {pk}"}


@app.task
def read(pk: int) -> dict[str, Any] | None:
    """Read a row."""
    from tests.rpc.site.models import Station

    return Station.objects.values("id", "name").get(pk=pk)
