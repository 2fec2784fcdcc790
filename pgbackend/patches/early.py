"""Things made from Django before this backend was loaded, which differ from later ones.

A project names the backend only in ``DATABASES``, so it is loaded when the first database wrapper
is made: with the first model class that has no ``db_table`` of its own, or with the first query.
``"pgbackend"`` as the first of ``INSTALLED_APPS`` loads it before the project's applications.
"""

from __future__ import annotations

import gc
import logging
from typing import Any

from django.core import checks

logger = logging.getLogger("pgbackend")

HINT = (
    'Put "pgbackend" first in INSTALLED_APPS, or `import pgbackend.base` before it where that is'
    " too late, as in the project's __init__.py."
)

# What was made too early, and the consequence.
made_early: list[tuple[str, str]] = []


def report_made_early(what: str, consequence: str) -> None:
    """Have the check ``pgbackend.W003`` report that *what* was made too early."""
    made_early.append((what, consequence))


def report_early_applications(handler: Any) -> None:
    """Report ASGI applications made before: instances of *handler* and its subclasses.

    Django alone has adapted their middleware. The warning is logged, too, since a server's process
    runs no checks.
    """
    if any(type(each) is handler for each in gc.get_referrers(handler)):
        what = f"The ASGI application {handler.__module__}.{handler.__qualname__} was made"
        consequence = "its synchronous middleware keeps its threads"
        report_made_early(what, consequence)
        logger.warning("%s before pgbackend was loaded: %s. %s", what, consequence, HINT)
    for subclass in handler.__subclasses__():
        report_early_applications(subclass)


def check_early(**kwargs: Any) -> list[checks.CheckMessage]:
    """Report what was made before this backend was loaded."""
    return [
        checks.Warning(
            f"{what} before pgbackend was loaded: {consequence}.", hint=HINT, id="pgbackend.W003"
        )
        for what, consequence in made_early
    ]
