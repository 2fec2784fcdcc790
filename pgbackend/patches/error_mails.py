"""Error mails: sent from a thread, even if an error is logged on the loop."""

from __future__ import annotations

import functools
import logging
from types import ModuleType
from typing import Any

import asgiref.sync
from django.conf import settings
from django.db import connections

from ..bridge.current import is_bridged
from ..bridge.greenlets import await_bridged


def patch(module: ModuleType) -> None:
    """Send error mails from a thread when the error is logged in the bridge.

    Django handles an exception entirely in a thread. Here the handling stays on the event loop,
    which must not wait for a mail server. (Django 5.2 to 6.1.)
    """
    handler = module.AdminEmailHandler
    handle = handler.handle

    @functools.wraps(handle)
    def patched(self: Any, record: logging.LogRecord) -> Any:
        if not is_bridged() or not (
            settings.ADMINS or type(self).send_mail is not handler.send_mail
        ):
            return handle(self, record)

        def send() -> Any:
            try:
                return handle(self, record)
            finally:
                # The thread has connections of its own: the mail's report may have fetched rows of
                # the request.
                connections.close_all()

        return await_bridged(asgiref.sync.sync_to_async(send, thread_sensitive=False)())

    handler.handle = patched
