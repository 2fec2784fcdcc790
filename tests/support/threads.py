"""Functions that run in a thread, where Django's own backend may be used."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from django.db import connections


def run_in_thread(function: Callable[[], Any]) -> Any:
    """Run *function* in a thread, where stock Django may be used, and close its connections."""
    results: list[Any] = []

    def call() -> None:
        try:
            results.append(function())
        finally:
            connections.close_all()

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return results[0]


def start_thread(function: Callable[[], Any]) -> threading.Thread:
    """Start a thread that runs *function*; the caller joins it."""
    thread = threading.Thread(target=function)
    thread.start()
    return thread
