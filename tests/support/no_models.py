"""A site in which nothing asks for a database until its first query."""

# A site without models, or with models that all name their tables: nothing in Django asks for a
# database wrapper before the first request. Its module stands for views.py, and what comes before
# django.setup() for the project's __init__.py or asgi.py.
SITE = """
from types import ModuleType
conf |= {
    "ALLOWED_HOSTS": ["testserver"],
    "DATABASES": {"default": conf["DATABASES"]["default"]},
    "DATABASE_ROUTERS": [],
    "INSTALLED_APPS": installed,
    "MIDDLEWARE": ["django.middleware.common.CommonMiddleware"],
    "ROOT_URLCONF": "__main__",
}
settings.configure(**conf)
from django.db import transaction
from asgiref.sync import iscoroutinefunction


@transaction.atomic
async def decorated(request):
    return await answer()


async def answer():
    from django.db import connection
    from django.http import HttpResponse
    assert connection.in_atomic_block
    with connection.cursor() as cursor:
        cursor.execute("SELECT 42")
        return HttpResponse(cursor.fetchone()[0])


import django
django.setup()
assert ("pgbackend.base" in sys.modules) == ("pgbackend" in installed)

from django.core.asgi import get_asgi_application
from django.core.checks import run_checks
from django.db import connection, connections, models
from django.urls import path
application = get_asgi_application()
"""


VIEWS = """
class Named(models.Model):
    class Meta:
        app_label, db_table = "named", "named"


async def block(request):
    async with transaction.atomic():
        return await answer()


async def visit():
    from tests.support.client import Client
    client = Client(application)
    for address in ("/block", "/decorated", "/block"):
        got = await client.get(address)
        print(got.status, got.text)


urlpatterns = [path("block", block), path("decorated", decorated)]
"""
