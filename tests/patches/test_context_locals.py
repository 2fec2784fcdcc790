"""A threading.local that is replaced by one of the context."""

import asyncio
import threading
from collections.abc import Callable
from contextvars import copy_context
from copy import copy
from types import ModuleType
from typing import Any

import pytest
import uvloop
from asgiref.sync import async_to_sync, sync_to_async

from pgbackend import bridged
from pgbackend.patches import context_locals
from pgbackend.patches.context_locals import ContextLocal, RequestLocal
from pgbackend.tasks.request import serving_with

LOOPS = pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])


def test_interface() -> None:
    """Attributes are set, read, looked for and deleted as those of threading.local."""
    local = ContextLocal()
    assert not hasattr(local, "value")
    with pytest.raises(AttributeError, match="value"):
        _ = local.value
    with pytest.raises(AttributeError, match="value"):
        del local.value
    local.value = local.other = [1]
    local.value.append(2)
    assert getattr(local, "value", None) == [1, 2]
    del local.value
    assert not hasattr(local, "value")
    assert local.other == [1, 2]


def test_two_of_them() -> None:
    """Two of them have attributes of their own."""
    first, second = ContextLocal(), ContextLocal()
    first.value = 1
    assert not hasattr(second, "value")


@LOOPS
@pytest.mark.parametrize("bridge", [bridged, lambda function: function])
def test_of_each_task(new_loop: Any, bridge: Callable[..., Any]) -> None:
    """What a task sets is its own; what was set before it was begun, it has."""
    local = ContextLocal()

    async def child(number: int, barrier: asyncio.Barrier) -> None:
        assert local.shared == "parent"
        assert not hasattr(local, "number")
        local.number = number
        local.shared = f"child {number}"
        await barrier.wait()
        assert (local.number, local.shared) == (number, f"child {number}")

    async def parent() -> None:
        local.shared = "parent"
        barrier = asyncio.Barrier(5)
        await asyncio.gather(*(bridge(child)(number, barrier) for number in range(5)))
        assert local.shared == "parent"
        assert not hasattr(local, "number")

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(bridge(parent)())


@LOOPS
def test_between_tasks_and_threads(new_loop: Any) -> None:
    """What asgiref's threads and the coroutines they wait for set comes back, and goes there."""
    local = ContextLocal()

    def in_thread() -> None:
        assert local.value == "task"
        local.value = "thread"
        async_to_sync(back_on_the_loop)()
        assert local.value == "loop"

    async def back_on_the_loop() -> None:
        assert local.value == "thread"
        local.value = "loop"

    async def main() -> None:
        local.value = "task"
        await sync_to_async(in_thread)()
        assert local.value == "loop"

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())


def test_another_thread() -> None:
    """A plain thread has nothing of another one's."""
    local = ContextLocal()
    local.value = 1
    seen = []
    thread = threading.Thread(
        target=lambda: seen.append(hasattr(local, "value")), **_without_context()
    )
    thread.start()
    thread.join()
    assert seen == [False]


def _without_context() -> dict[str, Any]:
    """Return arguments for a thread that inherits no context, which Python 3.14 lets them."""
    from contextvars import Context
    from inspect import signature

    return {"context": Context()} if "context" in signature(threading.Thread).parameters else {}


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("value", [{1}, [1], {1: 1}], ids=["set", "list", "dict"])
def test_changed_in_place(value: Any, copied: bool) -> None:
    """Copied, what a context changes in place is changed for it alone; else for all that share."""
    local = ContextLocal(copied=copied)
    local.value = copy(value)

    def change() -> None:
        local.value.clear()
        assert not local.value

    copy_context().run(change)
    assert bool(local.value) is copied
    change()
    assert not local.value


def test_other_values_are_shared() -> None:
    """Copied or not, an object that is no container is the same everywhere."""
    local = ContextLocal(copied=True)
    local.value = value = object()
    assert copy_context().run(lambda: local.value) is value


@LOOPS
def test_of_each_request(new_loop: Any) -> None:
    """What is kept for a request is the same in its tasks and threads, and no other request's."""
    local = RequestLocal()
    local.count = -1

    async def add() -> None:
        local.count += 1

    def add_in_thread() -> None:
        local.count += 1
        async_to_sync(add)()

    async def serve(number: int, barrier: asyncio.Barrier) -> int:
        with serving_with({}):
            assert not hasattr(local, "count")
            local.count = number
            await barrier.wait()
            await asyncio.gather(add(), add(), bridged(add)(), sync_to_async(add_in_thread)())
            await barrier.wait()
            return int(local.count)

    async def main() -> None:
        barrier = asyncio.Barrier(4)
        counts = await asyncio.gather(*(serve(number, barrier) for number in (0, 100, 200, 300)))
        assert counts == [5, 105, 205, 305]
        assert local.count == -1
        del local.count
        with pytest.raises(AttributeError, match="count"):
            del local.count

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())


class Owner:
    def __init__(self) -> None:
        self.local = threading.local()


def test_replace(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a module's are replaced, with what the thread has in them; nothing else is."""
    module: Any = ModuleType("some.package")
    monkeypatch.setitem(context_locals.MODULES, "some.package", ContextLocal)
    monkeypatch.setattr(Owner, "__module__", "some.package")
    module.threading, module.local, module.other = threading, threading.local, object()
    module.first, module.second, module.owner = threading.local(), threading.local(), Owner()
    module.first.value, module.owner.local.value = {1}, "owner's"
    before = dict(vars(module))
    context_locals.replace(module)
    assert isinstance(module.first, ContextLocal)
    assert isinstance(module.second, ContextLocal)
    assert isinstance(module.owner.local, ContextLocal)
    assert isinstance(module.local(), ContextLocal)
    assert module.first.value == {1}
    assert module.owner.local.value == "owner's"
    assert not hasattr(module.second, "value")
    for name in ("threading", "other", "owner"):
        assert getattr(module, name) is before[name]
    replaced = module.first
    context_locals.replace(module)
    assert module.first is replaced
