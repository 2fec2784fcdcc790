"""The site of the HTTP works: the views, and the application that uvicorn or gunicorn serves.

With BENCH_SYNCHRONOUS all of it is synchronous, as a project under WSGI would write it.
"""

import os

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.urls import path

from tests.benchmarks import values

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.benchmarks.settings")
django.setup(set_prefix=False)

from tests.benchmarks.models import Item  # noqa: E402  # needs the settings

_ENGINE = settings.DATABASES["default"]["ENGINE"]
OURS = _ENGINE == "pgbackend"

# django-async-backend has a manager of its own.
ITEMS = Item.async_objects if "async_backend" in _ENGINE else Item.objects


async def show_json(request: HttpRequest, queries: int) -> JsonResponse:
    """So many rows, each by a query of its own."""
    rows = [await ITEMS.aget(pk=values.key()) for _ in range(queries)]
    return JsonResponse({"rows": [{"id": row.pk, "name": row.name} for row in rows]})


async def show_html(request: HttpRequest) -> HttpResponse:
    """A page for a user who has logged in, with a session that is written to."""
    user = await request.auser()
    visits = await request.session.aget("visits", 0) + 1
    await request.session.aset("visits", visits)
    queryset = ITEMS.filter(pk__gte=values.start(values.ROWS)).order_by("pk")[: values.ROWS]
    rows = [row async for row in queryset]
    return render(request, "benchmarks/page.html", {"user": user, "visits": visits, "rows": rows})


def show_synchronous(request: HttpRequest) -> JsonResponse:
    """Five rows by a synchronous view; for pgbackend opted in to the event loop."""
    rows = [Item.objects.get(pk=values.key()) for _ in range(5)]
    return JsonResponse({"rows": [{"id": row.pk, "name": row.name} for row in rows]})


if OURS:
    from pgbackend import bridged

    show_synchronous = bridged(show_synchronous)  # type: ignore[assignment]


def show_json_synchronously(request: HttpRequest, queries: int) -> JsonResponse:
    """The rows of `show_json`."""
    rows = [Item.objects.get(pk=values.key()) for _ in range(queries)]
    return JsonResponse({"rows": [{"id": row.pk, "name": row.name} for row in rows]})


def show_html_synchronously(request: HttpRequest) -> HttpResponse:
    """The page of `show_html`."""
    visits = request.session["visits"] = request.session.get("visits", 0) + 1
    queryset = Item.objects.filter(pk__gte=values.start(values.ROWS)).order_by("pk")[: values.ROWS]
    found = {"user": request.user, "visits": visits, "rows": list(queryset)}
    return render(request, "benchmarks/page.html", found)


SYNCHRONOUS = bool(os.environ.get("BENCH_SYNCHRONOUS"))

urlpatterns = [
    path("json/<int:queries>/", show_json_synchronously if SYNCHRONOUS else show_json),
    path("html/", show_html_synchronously if SYNCHRONOUS else show_html),
    path("sync/", show_synchronous),
]

application = get_wsgi_application() if SYNCHRONOUS else get_asgi_application()
