"""Fingerprints of the places in Django and asgiref that `patches` changes or relies on.

A function whose work is done anew is replaced only if its fingerprint is known; see `is_known`.
A function that is wrapped, or whose inside is only relied on, is used whatever it is; see
`RELIED_ON`. A system check tells of both. `KNOWN` names for each value the first and the last
release of each line that has it.
"""

from __future__ import annotations

import hashlib
import inspect
import linecache
import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

from django.core import checks

# The places left unpatched because their fingerprints are unknown: (place, consequence).
unpatched: list[tuple[str, str]] = []

_REQUESTS = "requests are bridged all the same, and a part of them may not be"
_THREADS = "it is wrapped all the same, and calls in threads may wait for each other for ever"
_SIGNALS = "receivers of signals may run where they block the event loop"
_ALIASES = "an a-method may run in a thread that could have run on the event loop"
_STATEMENTS = "the backend's compiler takes its place all the same, and may leave something out"

# Places that are wrapped or relied on whatever they are, and what may follow where one is unknown.
# Only the check looks at them: they cost nothing at start-up.
RELIED_ON: dict[str, str] = {
    "asgiref.current_thread_executor.CurrentThreadExecutor": _THREADS,
    "asgiref.sync.AsyncToSync.__call__": (
        "it is wrapped all the same, and async_to_sync may fail in the bridge"
    ),
    "asgiref.sync.SyncToAsync.__call__": _THREADS,
    "asgiref.sync.SyncToAsync.thread_handler": _THREADS,
    "asgiref.sync.ThreadSensitiveContext.__aexit__": _THREADS,
    "asgiref.sync._restore_context": "context variables may be lost between threads",
    "django.contrib.sessions.backends.db.SessionStore.asave": _ALIASES,
    "django.core.handlers.asgi.ASGIHandler.handle": _REQUESTS,
    "django.core.handlers.asgi.ASGIHandler.listen_for_disconnect": _REQUESTS,
    "django.core.handlers.asgi.ASGIHandler.read_body": _REQUESTS,
    "django.core.handlers.asgi.ASGIHandler.run_get_response": _REQUESTS,
    "django.core.handlers.asgi.ASGIHandler.send_response": _REQUESTS,
    "django.core.handlers.base.BaseHandler.adapt_method_mode": _REQUESTS,
    "django.db.models.sql.compiler.SQLCompiler.as_sql": _STATEMENTS,
    "django.db.models.sql.compiler.SQLCompiler.execute_sql": _STATEMENTS,
    "django.db.models.sql.compiler.SQLCompiler.get_select": _STATEMENTS,
    "django.db.models.sql.compiler.SQLInsertCompiler.execute_sql": _STATEMENTS,
    "django.db.models.sql.compiler.SQLUpdateCompiler.as_sql": _STATEMENTS,
    "django.db.utils.ConnectionRouter._router_func": (
        "it is wrapped all the same, and a router may be asked twice"
    ),
    "django.dispatch.dispatcher.Signal._live_receivers": _SIGNALS,
    "django.dispatch.dispatcher.Signal.asend": _SIGNALS,
    "django.dispatch.dispatcher.Signal.asend_robust": _SIGNALS,
    "django.test.client.AsyncClientHandler.__call__": _REQUESTS,
    "django.urls.resolvers.URLResolver.resolve_error_handler": (
        "it is wrapped all the same, and an asynchronous error handler may fail"
    ),
    "django.utils.log.AdminEmailHandler.emit": "error mails may be sent from the event loop",
}


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
    """Report the places that are not of a known release, and what follows."""
    return [
        checks.Warning(
            f"{place} is not a version of {package}'s that pgbackend knows: {consequence}.",
            hint=f"Use a release of pgbackend that supports this {package}.",
            id="pgbackend.W001",
        )
        for place, consequence in (*unpatched, *_unknown())
        for package in ("asgiref" if place.startswith("asgiref.") else "Django",)
    ]


def _unknown() -> Iterator[tuple[str, str]]:
    """Yield the places of `RELIED_ON` that are of no known release, with their consequences.

    Not those whose module nobody has imported. What another package has put in a function's place
    says nothing of the release, and is passed by.
    """
    for place, consequence in RELIED_ON.items():
        module = module_of(place)
        if module is None:
            continue
        try:
            function = find(place, module)
        except AttributeError:
            yield place, f"it is not there; {consequence}"
            continue
        own = inspect.unwrap(function).__module__ == module.__name__
        if own and fingerprint(function) not in KNOWN[place]:
            yield place, consequence


def module_of(place: str) -> ModuleType | None:
    """Return the module of a function's *place*, if it is imported."""
    while place := place.rpartition(".")[0]:
        if (module := sys.modules.get(place)) is not None:
            # Its package may be imported without it.
            return module if not hasattr(module, "__path__") else None
    return None


def find(place: str, module: ModuleType) -> Any:
    """Return the function or the class at *place*, which is in *module*.

    Raise AttributeError where it is not there.
    """
    found: Any = module
    for name in place.removeprefix(f"{module.__name__}.").split("."):
        found = inspect.getattr_static(found, name)
    return found.__func__ if isinstance(found, classmethod | staticmethod) else found


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
    "asgiref.current_thread_executor.CurrentThreadExecutor": frozenset(
        {
            "a14b8ffc88ae",  # 3.12.0 to 3.12.1, 3.13.0
        }
    ),
    "asgiref.sync.AsyncToSync.__call__": frozenset(
        {
            "a54f6cf53e02",  # 3.12.0 to 3.12.1, 3.13.0
        }
    ),
    "asgiref.sync.SyncToAsync.__call__": frozenset(
        {
            "48735fc743e5",  # 3.12.0
            "67e564c3708a",  # 3.12.1
            "7ded92808f5e",  # 3.13.0
        }
    ),
    "asgiref.sync.SyncToAsync.thread_handler": frozenset(
        {
            "1f3fa44107dc",  # 3.12.0 to 3.12.1, 3.13.0
        }
    ),
    "asgiref.sync.ThreadSensitiveContext.__aexit__": frozenset(
        {
            "9b310e17aabf",  # 3.12.0 to 3.12.1
            "5e9212deb568",  # 3.13.0
        }
    ),
    "asgiref.sync._restore_context": frozenset(
        {
            "01c1a61c4c36",  # 3.12.0 to 3.12.1
            "454199cd7976",  # 3.13.0
        }
    ),
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
    "django.contrib.sessions.backends.db.SessionStore.asave": frozenset(
        {
            "7b66105ee365",  # 5.2 to 5.2.19, 6.0 to 6.0.7
            "8389dbfde894",  # 6.0.8 to 6.0.10, 6.1 to 6.1.3
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
    "django.core.handlers.asgi.ASGIHandler.handle": frozenset(
        {
            "43d55543bc51",  # 5.2 to 5.2.19, 6.0 to 6.0.10
            "28ca198ba465",  # 6.1 to 6.1.3
        }
    ),
    "django.core.handlers.asgi.ASGIHandler.listen_for_disconnect": frozenset(
        {
            "093bdc9b146e",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.core.handlers.asgi.ASGIHandler.read_body": frozenset(
        {
            "ebe87ae94083",  # 5.2 to 5.2.19
            "d93eaa5475cb",  # 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.core.handlers.asgi.ASGIHandler.run_get_response": frozenset(
        {
            "ef43b62a0405",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.core.handlers.asgi.ASGIHandler.send_response": frozenset(
        {
            "a7f0ada5440e",  # 5.2 to 5.2.19
            "950d25c83065",  # 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.core.handlers.asgi:sync_to_async": frozenset(
        {
            "def3a9162743",  # 5.2 to 5.2.19
            "3713c25bf5fb",  # 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.core.handlers.base.BaseHandler.adapt_method_mode": frozenset(
        {
            "f337642a42e7",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
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
    "django.db.models.query.BaseIterable.__aiter__": frozenset(
        {
            "d3e2638a4fbc",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
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
    "django.db.models.sql.compiler.SQLCompiler.as_sql": frozenset(
        {
            "4bab55cfa827",  # 5.2 to 5.2.19
            "4db3ac447562",  # 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.db.models.sql.compiler.SQLCompiler.execute_sql": frozenset(
        {
            "84d39406e87c",  # 5.2 to 5.2.19, 6.0 to 6.0.10
            "e227af149642",  # 6.1 to 6.1.3
        }
    ),
    "django.db.models.sql.compiler.SQLCompiler.get_select": frozenset(
        {
            "7d6abee322e0",  # 5.2
            "60c3d0376504",  # 5.2.1 to 5.2.19, 6.0 to 6.0.10
            "28d232ad0723",  # 6.1 to 6.1.3
        }
    ),
    "django.db.models.sql.compiler.SQLInsertCompiler.execute_sql": frozenset(
        {
            "279979b5cb4a",  # 5.2 to 5.2.19
            "d17d6705a773",  # 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.db.models.sql.compiler.SQLUpdateCompiler.as_sql": frozenset(
        {
            "0b91f8767413",  # 5.2 to 5.2.19
            "f1e83baf2158",  # 6.0 to 6.0.10
            "b5ed141de152",  # 6.1 to 6.1.3
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
    "django.db.utils.ConnectionRouter._router_func": frozenset(
        {
            "7804c8a97abc",  # 5.2 to 5.2.19
            "b2cf32c4e53e",  # 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.dispatch.dispatcher.Signal._live_receivers": frozenset(
        {
            "81fb8e976567",  # 5.2 to 5.2.19
            "e43e82e15d7d",  # 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.dispatch.dispatcher.Signal.asend": frozenset(
        {
            "50ab35fac684",  # 5.2 to 5.2.19, 6.0 to 6.0.10
            "c02ad055ccfd",  # 6.1 to 6.1.3
        }
    ),
    "django.dispatch.dispatcher.Signal.asend_robust": frozenset(
        {
            "bee86d0fd6f8",  # 5.2 to 5.2.19
            "12e78d65b87b",  # 6.0 to 6.0.10
            "12f0c675afaa",  # 6.1 to 6.1.3
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
    "django.test.client.AsyncClientHandler.__call__": frozenset(
        {
            "adf2bfd9e8ac",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.test.client:sync_to_async": frozenset(
        {
            "2228c91f7755",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.urls.resolvers.URLResolver.resolve_error_handler": frozenset(
        {
            "52d2ce21db1a",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
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
    "django.utils.log.AdminEmailHandler.emit": frozenset(
        {
            "2f22d40e1c7d",  # 5.2 to 5.2.19, 6.0 to 6.0.10
            "dd657f2668f3",  # 6.1 to 6.1.3
        }
    ),
}
