"""Locks that bridged code holds while it waits: they are named at once."""

import asyncio
import importlib
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pgbackend import bridged, detector
from tests.models import Author
from tests.support.fix_loops import Main
from tests.support.limits import PATIENCE


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """A function that makes a module with this source, to be imported, and returns its name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made: list[str] = []

    def make(source: str) -> str:
        name = f"{tmp_path.name}_{len(made)}".replace("-", "_")
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        importlib.invalidate_caches()
        made.append(name)
        return name

    yield make
    for name in made:
        sys.modules.pop(name, None)


QUERY = """
    from tests.models import Author
    count = Author.objects.count()
"""


def test_query_in_an_import(run_main: Main, module: Callable[[str], str], told: list[str]) -> None:
    """A module that waits for the database while it is imported is named, once."""
    name = module(QUERY)
    outer = module(f"import {name}")

    async def main() -> None:
        assert (await bridged(importlib.import_module)(outer)).__name__ == outer
        del sys.modules[name]
        await bridged(importlib.import_module)(name)

    run_main(main())
    assert [text.partition(" waits in the bridge: ")[0] for text in told] == [
        f"the import of {name}",
        f"the import of {outer}",
    ]
    assert "Import it at start-up" in told[0]


def test_import_without_a_query(
    run_main: Main, module: Callable[[str], str], told: list[str]
) -> None:
    """An import that does not wait is not named, nor is a query while another thread imports."""
    name = module("from tests.models import Author")
    slow = module(
        """
        import builtins
        builtins.entered.set()
        assert builtins.release.wait(120)
        """
    )
    import builtins

    scope: Any = builtins
    scope.entered, scope.release = threading.Event(), threading.Event()

    async def main() -> None:
        await bridged(importlib.import_module)(name)
        thread = threading.Thread(target=importlib.import_module, args=[slow])
        thread.start()
        assert scope.entered.wait(PATIENCE)
        assert not await Author.objects.aexists()
        scope.release.set()
        thread.join()

    run_main(main())
    assert told == []


def test_a_lock_that_stops_the_loop_is_named(
    run_main: Main, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who wants a threading.Lock that another task holds across a wait is named meanwhile."""
    monkeypatch.setattr(detector, "STILL_SECONDS", 0.3)
    lock = threading.Lock()
    entered = asyncio.Event()

    def hold() -> None:
        with lock:
            entered.set()
            Author.objects.count()

    def want() -> None:
        # Stock code would wait for ever.
        assert not lock.acquire(timeout=1.0)

    async def main() -> None:
        detector.watch(0.1)
        holder = asyncio.create_task(bridged(hold)())
        await entered.wait()
        await bridged(want)()
        await holder

    run_main(main())
    assert "test_a_lock_that_stops_the_loop_is_named.<locals>.want" in told[0]
    assert "still does" in told[0]
