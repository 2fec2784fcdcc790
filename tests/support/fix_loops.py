"""Event loops of each kind that tests run on."""

import asyncio
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop

from tests.support import loops

Main = Callable[[Coroutine[Any, Any, Any]], Any]


def eager_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.SelectorEventLoop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]  # 3.12
    return loop


LOOPS = {"asyncio": asyncio.SelectorEventLoop, "uvloop": uvloop.new_event_loop}
if sys.version_info >= (3, 12):
    LOOPS["eager"] = eager_loop


def _mark(name: str) -> Any:
    """Return the parameter: asyncio is for `make test`, the others for `make test-load`."""
    return pytest.param(name, marks=() if name == "asyncio" else pytest.mark.load)


@pytest.fixture(params=[_mark(name) for name in LOOPS])
def run_main(request: pytest.FixtureRequest) -> Iterator[Main]:
    """A function that runs a coroutine to its end: on asyncio's loop, uvloop, with eager tasks."""
    with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
        yield runner.run


@pytest.fixture(params=loops.EACH_LOOP)
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    """A runner of each kind of loop."""
    with asyncio.Runner(loop_factory=loops.LOOPS[request.param]) as runner:
        yield runner
