"""The places in Django where ``sync_to_async`` may lead to the database, and their rules.

`RULES` names modules, each with a rule: whether a function that the module is about to hand to a
thread runs on the event loop instead. A function that may block or burn CPU never does: password
hashing, error mails, caches other than the database's, and middleware, views and authentication
backends that are not Django's own, unless ``PGBACKEND_SYNC_ON_LOOP`` allows them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import asgiref.sync
from django.conf import settings
from django.core.cache import caches
from django.core.cache.backends.base import BaseCache
from django.core.cache.backends.db import BaseDatabaseCache
from django.core.signals import got_request_exception, request_finished, request_started
from django.utils.module_loading import import_string

from ..conf import sync_on_loop

Function = Callable[..., Any]

# Receivers of these signals look after the connections of the thread that served the request.
_REQUEST_SIGNALS = (request_started, request_finished, got_request_exception)

# Django's middleware whose hooks neither block nor burn CPU, the database aside.
_MIDDLEWARE = frozenset(
    {
        "django.contrib.admindocs.middleware",
        "django.contrib.auth.middleware",
        "django.contrib.flatpages.middleware",
        "django.contrib.messages.middleware",
        "django.contrib.redirects.middleware",
        "django.contrib.sessions.middleware",
        "django.contrib.sites.middleware",
        "django.middleware.clickjacking",
        "django.middleware.csp",
        "django.middleware.csrf",
        "django.middleware.http",
        "django.middleware.locale",
        "django.middleware.security",
    }
)

# The modules among them that load or save the session.
_SESSION_MIDDLEWARE = frozenset(
    {
        "django.contrib.auth.middleware",
        "django.contrib.messages.middleware",
        "django.contrib.sessions.middleware",
        "django.middleware.csrf",
    }
)

# Caches that answer without waiting for anything but the database.
_PROMPT_CACHES = ("db", "dummy", "locmem")


_PACKAGE = __name__.partition(".")[0]


def always(function: Function, args: tuple[Any, ...]) -> bool:
    """Return True: the module hands only functions of the ORM to threads."""
    return True


def _is_djangos(function: Any) -> bool:
    return str(getattr(function, "__module__", "")).startswith("django.")


def _is_prompt_receiver(function: Any) -> bool:
    """Return whether a receiver of request signals is Django's or this package's."""
    return _is_djangos(function) or function.__module__.partition(".")[0] == _PACKAGE


def _is_prompt_cache(cache: BaseCache) -> bool:
    module = type(cache).__module__
    return module in {f"django.core.cache.backends.{name}" for name in _PROMPT_CACHES}


def cache(function: Function, args: tuple[Any, ...]) -> bool:
    """Return whether the function is a method of the database cache."""
    return isinstance(getattr(function, "__self__", None), BaseDatabaseCache)


def signal(function: Function, args: tuple[Any, ...]) -> bool:
    """Return True for receivers of signals; for request signals, if all are prompt."""
    if not getattr(function, "__qualname__", "").endswith("<locals>.sync_send"):
        return True
    # The function runs the receivers of a signal, grouped in Signal.asend() and asend_robust().
    if _free_variable(function, "self") not in _REQUEST_SIGNALS:
        return True
    return not _has_thread() and _may_run_here(_free_variable(function, "sync_receivers"))


def _free_variable(function: Function, name: str) -> Any:
    cells: Any = function.__closure__
    return cells[function.__code__.co_freevars.index(name)].cell_contents


def _may_run_here(receivers: list[Function]) -> bool:
    return sync_on_loop() or all(map(_is_prompt_receiver, receivers))


def _has_thread() -> bool:
    """Return whether the running request has a thread, which has to close its own connections.

    asgiref keeps a thread for each ThreadSensitiveContext, which Django opens around a request.
    """
    context = asgiref.sync.SyncToAsync.thread_sensitive_context.get(None)
    return context in asgiref.sync.SyncToAsync.context_to_thread_executor


def sessions_are_prompt() -> bool:
    """Return whether the session engine waits for nothing but the database."""
    if sync_on_loop():
        return True
    modules = _modules_of_sessions(settings.SESSION_ENGINE)
    if modules & {"cache", "cached_db"}:
        return _is_prompt_cache(caches[settings.SESSION_CACHE_ALIAS])
    return bool(modules & {"db", "signed_cookies"})


@functools.cache
def _modules_of_sessions(engine: str) -> frozenset[str]:
    store: Any = import_string(f"{engine}.SessionStore")
    return frozenset(
        cls.__module__.removeprefix("django.contrib.sessions.backends.") for cls in store.mro()
    )


def session(function: Function, args: tuple[Any, ...]) -> bool:
    """Return whether sessions are in the database or in cookies."""
    return sessions_are_prompt()


def authentication(function: Function, args: tuple[Any, ...]) -> bool:
    """Return True for Django's own authentication backends and tests of permissions."""
    return sync_on_loop() or _is_djangos(function)


def task(function: Function, args: tuple[Any, ...]) -> bool:
    """Return True for Django's task backends, except the one that calls the task at once."""
    if sync_on_loop():
        return True
    immediate = "django.tasks.backends.immediate"
    return _is_djangos(function) and function.__module__ != immediate


def middleware(function: Function, args: tuple[Any, ...]) -> bool:
    """Return True for hooks of Django's own middleware, by the class that defines them."""
    if sync_on_loop():
        return True
    if not inspect.ismethod(function):
        # The function is the whole chain from a synchronous middleware on, named after the
        # outermost.
        return False
    module = getattr(function, "__module__", "")
    if module == "django.middleware.common":
        # CommonMiddleware may run here; BrokenLinkEmailsMiddleware in the same module sends mail.
        return function.__qualname__.startswith("CommonMiddleware.")
    return module in _MIDDLEWARE and (module not in _SESSION_MIDDLEWARE or sessions_are_prompt())


def handler(function: Function, args: tuple[Any, ...]) -> bool:
    """Return True for steps of `BaseHandler` that run here; for views if the setting allows it."""
    if sync_on_loop():
        return True
    name = getattr(function, "__name__", "")
    if name == "log_response":
        # Error mails, the slow part of logging, are sent from a thread; see `error_mails`.
        return _is_djangos(function)
    if name == "process_exception_by_middleware":
        return not function.__self__._exception_middleware  # type: ignore[attr-defined]  # bound
    if name == "render" and _is_djangos(function):
        # A TemplateResponse is rendered where its view ran.
        return not _has_thread()
    return middleware(function, args)


def response(function: Function, args: tuple[Any, ...]) -> bool:
    """Return True for closing a response, which sends request_finished, without a thread."""
    if getattr(function, "__name__", "") != "close" or not _is_djangos(function):
        return False
    sender = function.__self__._handler_class  # type: ignore[attr-defined]  # bound
    # Asynchronous receivers wait in place.
    receivers, _ = request_finished._live_receivers(sender)
    return not _has_thread() and _may_run_here(receivers)


def streaming(function: Function, args: tuple[Any, ...]) -> bool:
    """Return whether to read a synchronous iterator here; it belongs to a synchronous view."""
    return sync_on_loop()


RULES: dict[str, Callable[[Function, tuple[Any, ...]], bool]] = {
    "django.contrib.auth.backends": authentication,
    "django.contrib.auth.decorators": authentication,
    "django.contrib.contenttypes.fields": always,
    "django.contrib.sessions.backends.base": session,
    "django.contrib.sessions.backends.db": always,
    "django.core.cache.backends.base": cache,
    "django.core.handlers.asgi": response,
    "django.core.handlers.base": handler,
    "django.core.handlers.exception": always,
    "django.core.paginator": always,
    "django.db.models.base": always,
    "django.db.models.fields.related_descriptors": always,
    "django.db.models.query": always,
    "django.dispatch.dispatcher": signal,
    "django.http.response": streaming,
    "django.tasks.backends.base": task,
    "django.test.client": response,
    "django.utils.deprecation": middleware,
}
