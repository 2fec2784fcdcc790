"""The event loops that the tests of faults run on."""

import asyncio

NAMES = ("asyncio", "uvloop")


def new_loop(name: str) -> asyncio.AbstractEventLoop:
    """Return a new event loop: asyncio's own or uvloop's, by its name in NAMES."""
    if name == "uvloop":
        import uvloop

        return uvloop.new_event_loop()
    return asyncio.SelectorEventLoop()
