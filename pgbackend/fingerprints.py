"""Fingerprints of the places in Django and asgiref that `patches` changes or relies on.

A function whose work is done anew is replaced only if its fingerprint is known; see `is_known`.
A function that is wrapped, or whose inside is only relied on, is used whatever it is; see
`RELIED_ON`. A system check tells of both. The known fingerprints are in `known_sources`.
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

from .known_sources import KNOWN

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
