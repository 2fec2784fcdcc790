"""Two verbs: run synchronous code in a greenlet of a task, and wait from inside it.

`run_bridged` runs a synchronous function inside a greenlet of the current task;
`await_bridged`, called anywhere below it, waits for an awaitable: the greenlet is switched
away, the task waits as any task does, and the call returns with the result.

    async def view(request):
        return await run_bridged(render, request)

    def render(request):
        data = await_bridged(fetch())   # as `await fetch()`, but in synchronous code

Context variables are the task's own on both sides. The module knows neither Django nor
psycopg.
"""

from __future__ import annotations

import inspect
import sys
import threading
from asyncio import (
    AbstractEventLoop,
    Future,
    SelectorEventLoop,
    Task,
    _get_running_loop,
    current_task,
    tasks,
)
from collections.abc import Awaitable, Callable, Collection, Generator
from contextvars import Context
from types import CoroutineType, coroutine
from typing import Any, NoReturn, ParamSpec, TypeVar
from weakref import ref

from greenlet import GreenletExit, getcurrent

from .calls import call, call_handling
from .current import Bridge, BridgeError, is_bridged
from .depth import is_shallow
from .loops import calls_from_python, in_step

P = ParamSpec("P")
T = TypeVar("T")

_OUTSIDE = (
    "await_bridged() was called outside the bridge: run the synchronous function by `await"
    " pgbackend.bridged(function)(...)`, or await this directly in asynchronous code"
)
_CLOSED = "the bridged call was closed while it waited: nothing is left to await it"


class CallClosedError(BridgeError):
    """Something was awaited in a bridged call that was closed."""


# A greenlet switches this value out when a call has ended; the outcome is in its attributes.
_ENDED = object()

# How many greenlets a thread keeps for later calls: making one costs more than a switch.
_KEPT = 100


class _Idle(threading.local):
    """The idle greenlets of the calling thread."""

    def __init__(self) -> None:
        # Greenlets for event loops that call back from Python code only.
        self.bridges: list[Bridge] = []
        # Greenlets for the last other event loop that was used, which `loop` refers to.
        self.on_loop: list[Bridge] = []
        self.loop: Callable[[], AbstractEventLoop | None] = _no_loop


def _no_loop() -> None:
    """Stand in for a weak reference to a loop while there is none."""


_idle = _Idle()


def await_bridged(awaitable: Awaitable[T]) -> T:
    """Wait for *awaitable* from synchronous code that runs bridged and return its result.

    Equivalent to ``await awaitable``, cancellation included. Without suspension there is
    no switch: only what the awaitable yields to the event loop leaves the greenlet.

    Raise `BridgeError` outside the bridge (a coroutine given is closed, so that it is not
    reported as never awaited), and when the bridged call was closed while it waited.
    """
    if not is_bridged():
        _refuse(awaitable, _OUTSIDE)
    # Do not name the greenlet in a local variable: this frame lives in the greenlet, so the name
    # would make a reference cycle and keep the greenlet of a closed call from being collected.
    if getattr(getcurrent(), "call_closed", False):
        _refuse(awaitable, _CLOSED, CallClosedError)

    steps: Any = awaitable if type(awaitable) is CoroutineType else _as_coroutine(awaitable)
    try:
        waiting = steps.send(None)
        while True:
            try:
                value = _suspend(waiting)
            except BaseException as error:
                waiting = steps.throw(error)
            else:
                waiting = steps.send(value)
    except StopIteration as stop:
        result: T = stop.value
        return result


def check_bridged() -> None:
    """Raise `BridgeError` where nothing can be awaited, before anything is begun."""
    if not is_bridged():
        raise BridgeError(_OUTSIDE)
    bridge: Any = getcurrent()
    if bridge.call_closed:
        raise CallClosedError(_CLOSED)


def await_future(future: Future[T]) -> T:
    """Do what `await_bridged` does, for a pending future, where the caller knows it is bridged."""
    _suspend(next(future.__await__()))
    return future.result()


async def _as_coroutine(awaitable: Awaitable[T]) -> T:
    return await awaitable


# `_check_before_wait` is called before each wait while one of these containers is not empty; see
# `check_before_waits`.
_checked_containers: tuple[Collection[Any], ...] = ()


def _check_before_wait() -> None:
    """Do nothing; `check_before_waits` replaces this function."""


def check_before_waits(containers: tuple[Collection[Any], ...], check: Callable[[], None]) -> None:
    """Call *check* before waits that leave a greenlet, while one of *containers* is not empty."""
    global _checked_containers, _check_before_wait
    _checked_containers, _check_before_wait = containers, check


def _suspend(waiting: Any) -> Any:
    """Hand an awaitable's yielded value to the event loop and return the loop's answer."""
    if any(_checked_containers):
        _check_before_wait()
    bridge: Any = getcurrent()
    if bridge.call_closed:
        raise CallClosedError(_CLOSED)
    parent = bridge.parent
    del bridge
    return parent.switch(waiting)


def _refuse(
    awaitable: Awaitable[Any], message: str, error: type[BridgeError] = BridgeError
) -> NoReturn:
    if inspect.iscoroutine(awaitable):
        awaitable.close()
    raise error(message)


async def run_bridged(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run the synchronous *function* bridged, in this task, and return its result.

    In code that is already bridged this is a plain call. Exceptions pass through unchanged.
    Cancelling the task raises CancelledError inside the function, from the `await_bridged` that it
    waits in.
    """
    if is_bridged():
        return function(*args, **kwargs)
    return await drive(function, args, kwargs)


@coroutine
def drive(
    function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Generator[Any, Any, T]:
    """Run one outermost bridged call to its end; yield whatever it waits for.

    Awaiting ``drive(function, args, kwargs)`` is `run_bridged` for a caller that knows that it is
    not bridged itself.
    """
    driver = getcurrent()
    loop = _get_running_loop()
    # The first condition is the frequent case of the second one.
    if type(loop) is SelectorEventLoop or calls_from_python(loop):
        idle, reuses = _idle.bridges, True
    else:
        idle, reuses = _idle_on(loop), in_step()
    del loop
    if idle and reuses:
        bridge = idle.pop()
        bridge.parent = driver
    else:
        bridge = Bridge(_serve, driver)
        bridge.thread = threading.get_ident()
        bridge.reusable = len(idle) < _KEPT and driver.parent is None and is_shallow()
        # Start the greenlet without arguments: it would keep them as long as it lives.
        bridge.switch()
    bridge.owner = current_task()
    bridge.gr_context = driver.gr_context
    bridge.handled = sys.exception()
    del driver
    result = bridge.switch(function, args, kwargs)
    while result is not _ENDED:
        if bridge.dead:
            # GreenletExit, which the function has raised: greenlet would return it.
            raise result
        try:
            value = yield result
        except GeneratorExit:
            # The coroutine is being closed or collected: the function may unwind, but no loop is
            # left to wait in.
            bridge.call_closed = True
            _unwind(bridge)
            raise
        except BaseException as error:
            bridge.parent = getcurrent()
            result = bridge.throw(error)
        else:
            # The task may be resumed from a greenlet other than the one it was suspended in.
            bridge.parent = getcurrent()
            result = bridge.switch(value)
    result, raised = bridge.returned, bridge.raised
    bridge.returned = bridge.raised = None
    bridge.owner = bridge.gr_context = bridge.add_scope_end = bridge.cached_state = None
    bridge.in_scope = False
    # Reuse the greenlet only if its parent is the thread's main greenlet: an idle greenlet keeps
    # its parent alive, which must not be another library's greenlet.
    free = bridge.reusable and len(idle) < _KEPT
    if free and bridge.parent.parent is None:  # type: ignore[union-attr]  # has one
        idle.append(bridge)
    # Drop the name: the traceback of a raised exception keeps this frame, and the frame would keep
    # a greenlet that is not reused.
    del bridge
    if raised is not None:
        context = raised.__context__
        try:
            raise raised
        finally:
            # Restore the context, which `raise` replaces, and drop the names: the traceback keeps
            # this frame, so they would make a cycle.
            raised.__context__ = context
            del context, raised
    return result  # type: ignore[no-any-return]  # greenlet.switch() is untyped


def _idle_on(loop: Any) -> list[Bridge]:
    """Return the calling thread's idle greenlets that began on *loop*."""
    if _idle.loop() is not loop:
        _idle.loop, _idle.on_loop = ref(loop), []
    return _idle.on_loop


def _unwind(bridge: Bridge) -> None:
    """Let the function of a closed call unwind, in the thread that the greenlet belongs to.

    The garbage collector may have closed the coroutine in another thread.
    """
    if bridge.thread == threading.get_ident():
        _throw_exit(bridge)
        return
    owner: Task[Any] | None = bridge.owner
    loop = None if owner is None else owner.get_loop()
    # If the loop is closed, the function has nothing left to give back.
    if loop is not None and not loop.is_closed():
        loop.call_soon_threadsafe(_throw_exit, bridge, context=Context())


def _throw_exit(bridge: Bridge) -> None:
    """Unwind the function as its own task: `current_task()` in it returns that task."""
    loop, owner = _get_running_loop(), bridge.owner
    bridge.parent = getcurrent()
    if loop is None or owner is None or owner.get_loop() is not loop:
        bridge.throw(GreenletExit)
        return
    running = current_task()
    if running is owner:
        bridge.throw(GreenletExit)
        return
    # asyncio has no public way to change the running task.
    if running is not None:
        tasks._leave_task(loop, running)
    tasks._enter_task(loop, owner)
    try:
        bridge.throw(GreenletExit)
    finally:
        tasks._leave_task(loop, owner)
        if running is not None:
            tasks._enter_task(loop, running)


def _serve() -> None:
    """Run one call after the other inside the greenlet, which is idle in between.

    An idle greenlet must keep nothing of a call, not even as the argument of a switch. A greenlet
    ends with a call that was closed, and when it is collected.
    """
    # The greenlet itself must have no name here; see `await_bridged`.
    current: Any = getcurrent
    while True:
        function, args, kwargs = current().parent.switch(_ENDED)
        try:
            run = call if current().handled is None else call_handling
            current().returned = run(function, args, kwargs)
        except GreenletExit:
            raise
        except BaseException as error:
            if current().call_closed:
                raise
            current().raised = error
        del function, args, kwargs
        if current().call_closed:
            return
