"""django-debug-toolbar's SQL panel sees all statements of a request."""

from __future__ import annotations

import pytest

from tests.instrumentation.scripts import ON_LOOP, middleware, run
from tests.instrumentation.site import expected, make_library

pytestmark = pytest.mark.process


TOOLBAR = """
conf["INSTALLED_APPS"] += ["django.contrib.staticfiles", "debug_toolbar"]
conf["DEBUG_TOOLBAR_CONFIG"] = {"RESULTS_CACHE_SIZE": 100}
conf["INTERNAL_IPS"] = ["127.0.0.1"]
conf["MIDDLEWARE"] += ["debug_toolbar.middleware.DebugToolbarMiddleware"]
conf["ROOT_URLCONF"] = "toolbar_urls"
conf["STATIC_URL"] = "static/"
conf["TEMPLATES"] = [
    {"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}
]
settings.configure(**conf)
import django
django.setup()

from types import ModuleType
from debug_toolbar.store import get_store
from debug_toolbar.toolbar import debug_toolbar_urls
from tests.instrumentation import site

urls = sys.modules["toolbar_urls"] = ModuleType("toolbar_urls")
urls.urlpatterns = [*site.urlpatterns, *debug_toolbar_urls()]
seen = {}
for name, answer in site.visit().items():
    panel = get_store().panel(answer["Djdt-Request-Id"], "SQLPanel")
    seen[name] = [site.text(query["sql"]) for query in panel["queries"]]
print(json.dumps(seen))
"""


@ON_LOOP
@pytest.mark.parametrize("above", [[], ["do_nothing_in_a_thread"]], ids=["first", "second"])
def test_debug_toolbar(above: list[str], sync_on_loop: bool) -> None:
    """The SQL panel of a request has its statements, also where the toolbar runs in a thread."""
    make_library()
    seen = run(
        TOOLBAR,
        DEBUG=True,
        MIDDLEWARE=[middleware(name) for name in above],
        PGBACKEND_SYNC_ON_LOOP=sync_on_loop,
    )
    assert seen == expected(without=("BEGIN", "COMMIT"))
