"""The examples of the page about type checking run, as well as they are checked."""

from __future__ import annotations

from typing import Any

from tests.pages.examples import example

PAGE = "docs/howto/type-checking.md"
ATOMIC: Any = example(PAGE, "import atomic").run()
BRIDGED: Any = example(PAGE, "import bridged").run()


async def test_atomic() -> None:
    """Blocks and decorated coroutine functions are one transaction."""
    assert await ATOMIC.place_all(1, 2) == ["an order of 1", "an order of 2"]


async def test_bridged() -> None:
    """A bridged function is awaited."""
    assert await BRIDGED.labels() == ["order 1", "order 2"]
