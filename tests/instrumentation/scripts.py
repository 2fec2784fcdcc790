"""Scripts with an instrumentation, each in a process of its own."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.support.script import ROOT, run_script

# The site's settings. In the server's own time zone no statement has to set it. Without what needs
# django-pgtrigger, in whose place `LOCALS` has a short form.
SITE = """\
import json
conf["ALLOWED_HOSTS"] = ["testserver"]
conf["DEBUG_PROPAGATE_EXCEPTIONS"] = True
conf["INSTALLED_APPS"] = [
    each for each in conf["INSTALLED_APPS"] if each != "pgtrigger" and "pubsub" not in each
]
conf["MIDDLEWARE"] = []
conf["PGBACKEND_BLOCKING_TIME"] = None
conf["ROOT_URLCONF"] = "tests.instrumentation.site"
for each in conf["DATABASES"].values():
    each["OPTIONS"].update(options="-c TimeZone=UTC", pool={"min_size": 0, "max_size": 30})
"""


ON_LOOP = pytest.mark.parametrize(
    "sync_on_loop",
    [
        pytest.param(False, id="threads"),
        pytest.param(True, id="on the loop", marks=pytest.mark.load),
    ],
)


def run(script: str, *, path: Path | None = None, **changes: Any) -> Any:
    """Run *script* with the site's settings, changed by *changes*, and return what it prints.

    *path* goes before everything else on sys.path.
    """
    more = "".join(f"conf[{name!r}] = {value!r}\n" for name, value in changes.items())
    return json.loads(run_script(SITE + more + textwrap.dedent(script), path=path))


def middleware(name: str) -> str:
    return f"tests.instrumentation.site.{name}"


WATCHED = """
settings.configure(**conf)
import django
django.setup()
from tests.instrumentation import site
site.visit()
print(json.dumps(site.seen))
"""


# Short forms of django-pghistory, django-pgtrigger and django-silk, under their names.
LOCALS = ROOT / "tests" / "instrumentation" / "locals"
