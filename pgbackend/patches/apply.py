"""Apply every change that this backend makes to Django and others at run time.

If an asynchronous method of Django hands its synchronous twin to a thread, and that leads to the
database, the twin runs bridged instead (`a_methods`). No thread is needed, and a project's own
override of the twin is respected, since the twin is what is called.

Each changed function of Django or asgiref has a fingerprint; for unknown ones see `fingerprints`.
"""

from __future__ import annotations

from . import (
    a_methods,
    aliases,
    asgiref,
    atomic,
    context_locals,
    error_mails,
    evaluation,
    guards,
    handlers,
    history,
    iterators,
    log_handlers,
    threads,
    toolbar,
)
from .import_hooks import after_import
from .where_to_run import RULES

_applied = False


def apply() -> None:
    """Apply all patches; a second call does nothing."""
    global _applied
    if _applied:
        return
    _applied = True
    for name in RULES:
        after_import(name, a_methods.patch)
    after_import("django.utils.asyncio", guards.patch)
    after_import("django.db.utils", aliases.patch)
    after_import("django.db.transaction", atomic.patch)
    after_import("django.db.models.query", iterators.patch)
    after_import("django.db.models.query", evaluation.patch)
    after_import("django.core.handlers.asgi", handlers.patch)
    after_import("django.core.handlers.base", atomic.patch_requests)
    after_import("django.core.handlers.base", handlers.patch_adaption)
    after_import("django.urls.resolvers", handlers.patch_error_handlers)
    after_import("django.test.client", handlers.patch_client)
    after_import("django.utils.log", error_mails.patch)
    after_import("debug_toolbar.panels.sql.panel", toolbar.patch)
    for name in context_locals.MODULES:
        after_import(name, context_locals.replace)
    after_import("pghistory.runtime", history.patch)
    asgiref.patch()
    threads.patch()
    log_handlers.patch()
