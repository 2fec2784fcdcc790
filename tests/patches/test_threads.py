"""asyncio's to_thread, by whichever name."""

import asyncio


def test_to_thread_imported_by_name() -> None:
    """A module that imported the function before this backend was loaded has the same one."""
    assert asyncio.threads.to_thread is asyncio.to_thread
