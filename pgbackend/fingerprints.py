"""Fingerprints of the places in Django that `patches` changes.

A place whose fingerprint belongs to no supported version stays as it is, and a system check reports
that. For each value, `KNOWN` names the first and the last release of each line that has it.
"""

from __future__ import annotations

import hashlib
import inspect
import linecache
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from django.core import checks

# The places left unpatched because their fingerprints are unknown: (place, consequence).
unpatched: list[tuple[str, str]] = []


def is_known(place: str, value: str, consequence: str) -> bool:
    """Return whether *value* is a supported version's fingerprint of *place*.

    If it is not, the check ``pgbackend.W001`` reports the *consequence* of leaving the place alone.
    """
    if value in KNOWN.get(place, ()):
        return True
    if (place, consequence) not in unpatched:
        unpatched.append((place, consequence))
    return False


def check_unpatched(**kwargs: Any) -> list[checks.CheckMessage]:
    """Report the places that stay unpatched because this version of Django is unknown."""
    return [
        checks.Warning(
            f"{place} is not a version of Django's that pgbackend knows: {consequence}.",
            hint="Use a release of pgbackend that supports this Django.",
            id="pgbackend.W001",
        )
        for place, consequence in unpatched
    ]


def fingerprint(function: Callable[..., Any]) -> str:
    """Return a short hash of a function's source, indentation and blank lines aside."""
    lines, _ = inspect.getsourcelines(inspect.unwrap(function))
    return _digest(lines)


def fingerprint_of_calls(module: ModuleType) -> str:
    """Return a short hash of all lines of a module that mention ``sync_to_async``."""
    lines = linecache.getlines(inspect.getsourcefile(module) or "")
    return _digest([line for line in lines if "sync_to_async" in line])


def _digest(lines: Sequence[str]) -> str:
    text = "\n".join(line.strip() for line in lines if line.strip())
    return hashlib.sha256(text.encode()).hexdigest()[:12]


KNOWN: dict[str, frozenset[str]] = {
    "django.contrib.auth.backends:sync_to_async": frozenset(
        {
            "b24949c71814",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.contrib.auth.decorators:sync_to_async": frozenset(
        {
            "d944490b62cc",  # 5.2 to 5.2.19, 6.0 to 6.0.10
            "7f7ff735909f",  # 6.1 to 6.1.3
        }
    ),
    "django.contrib.contenttypes.fields:sync_to_async": frozenset(
        {
            "5b84d006fc41",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.contrib.sessions.backends.base:sync_to_async": frozenset(
        {
            "4b18eecffcc7",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.contrib.sessions.backends.db:sync_to_async": frozenset(
        {
            "f09089ad9afc",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.core.cache.backends.base:sync_to_async": frozenset(
        {
            "b83cd4aa732f",  # 5.2 to 5.2.19, 6.0 to 6.0.10
            "c4e537b3f074",  # 6.1 to 6.1.3
        }
    ),
    "django.core.handlers.asgi:sync_to_async": frozenset(
        {
            "def3a9162743",  # 5.2 to 5.2.19
            "3713c25bf5fb",  # 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.core.handlers.base.BaseHandler.make_view_atomic": frozenset(
        {
            "b02367b91c01",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.core.handlers.base:sync_to_async": frozenset(
        {
            "435f8e6ad0f6",  # 5.2 to 5.2.19, 6.0 to 6.0.10
            "928eddf385cc",  # 6.1 to 6.1.3
        }
    ),
    "django.core.handlers.exception:sync_to_async": frozenset(
        {
            "af6d30b7cb18",  # 5.2 to 5.2.19, 6.0 to 6.0.10
            "b361c7e77686",  # 6.1 to 6.1.3
        }
    ),
    "django.core.paginator:sync_to_async": frozenset(
        {
            "7ff21df91837",  # 6.0 to 6.0.10
            "1909b9e869c6",  # 6.1 to 6.1.3
        }
    ),
    "django.db.models.base:sync_to_async": frozenset(
        {
            "ab7363a9ff30",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.db.models.fields.related_descriptors:sync_to_async": frozenset(
        {
            "57f257702036",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.db.models.query.BaseIterable._async_generator": frozenset(
        {
            "57fdfb06f61f",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.db.models.query.QuerySet._fetch_all": frozenset(
        {
            "17d4d58f9723",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.db.models.query.QuerySet._prefetch_related_objects": frozenset(
        {
            "a9bb2ffdee23",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.db.models.query.QuerySet.aiterator": frozenset(
        {
            "cbd61ed6dda3",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.db.models.query.RawQuerySet._fetch_all": frozenset(
        {
            "4a59cbf3b810",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.db.models.query.RawQuerySet._prefetch_related_objects": frozenset(
        {
            "1dda6d38cb17",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.db.models.query.RawQuerySet.iterator": frozenset(
        {
            "a98ea6a762e9",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.db.models.query:sync_to_async": frozenset(
        {
            "6ae6bc589750",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.db.transaction.Atomic.__enter__": frozenset(
        {
            "87b565ef0b68",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.db.transaction.Atomic.__exit__": frozenset(
        {
            "1e1d49ab612a",  # 5.2 to 5.2.19
            "73d934953258",  # 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.dispatch.dispatcher:sync_to_async": frozenset(
        {
            "004132bdaf84",  # 5.2 to 5.2.19, 6.0 to 6.0.10
            "e6ef8963f8a9",  # 6.1 to 6.1.3
        }
    ),
    "django.http.response:sync_to_async": frozenset(
        {
            "d754cbb920ff",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.tasks.backends.base:sync_to_async": frozenset(
        {
            "5d6a348ff655",  # 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.test.client:sync_to_async": frozenset(
        {
            "2228c91f7755",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.utils.asyncio.async_unsafe": frozenset(
        {
            "1757d3b70a6d",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.utils.deprecation:sync_to_async": frozenset(
        {
            "d03aa5fe7f02",  # 5.2 to 5.2.19, 6.0 to 6.0.10
            "2d86c307d24c",  # 6.1 to 6.1.3
        }
    ),
}
