"""Event loops by their names: of asyncio and uvloop, with ordinary and with eager tasks."""

import asyncio
import sys
from collections.abc import Callable
from functools import partial

import pytest

NAMES = ("asyncio", "uvloop")


def new_loop(name: str) -> asyncio.AbstractEventLoop:
    """Return a new event loop: asyncio's own or uvloop's, by its name in NAMES."""
    if name == "uvloop":
        import uvloop

        return uvloop.new_event_loop()
    return asyncio.SelectorEventLoop()


def _eager(make: Callable[[], asyncio.AbstractEventLoop]) -> asyncio.AbstractEventLoop:
    loop = make()
    # asyncio.eager_task_factory of 3.12 does not take what uvloop hands it.
    loop.set_task_factory(
        lambda loop, coro, **names: asyncio.Task(coro, loop=loop, **{**names, "eager_start": True})
    )
    return loop


# NAMES for parametrize(): asyncio is for `make test`, uvloop for `make test-load`.
EACH_NAME = ["asyncio", pytest.param("uvloop", marks=pytest.mark.load)]


# Loops, by name: of asyncio and uvloop, with ordinary and with eager tasks (Python 3.12).
LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    name: partial(new_loop, name) for name in NAMES
}
if sys.version_info >= (3, 12):
    LOOPS |= {f"{name}, eager": partial(_eager, make) for name, make in LOOPS.items()}

# The same for parametrize() and fixtures: a matrix runs on asyncio's own loop in `make test`, and
# on the others in `make test-load`.
EACH_LOOP = [
    pytest.param(name, marks=() if name == "asyncio" else pytest.mark.load) for name in LOOPS
]
