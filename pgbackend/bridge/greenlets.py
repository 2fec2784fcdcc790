"""The bridge: synchronous code on the event loop's own thread, waiting without blocking it.

Two verbs. `run_bridged` runs a synchronous function inside a greenlet of the current task;
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

import functools
import inspect
import os
import sys
import threading
from asyncio import (
    AbstractEventLoop,
    BaseEventLoop,
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

from greenlet import GreenletExit, getcurrent, greenlet

P = ParamSpec("P")
T = TypeVar("T")


_OUTSIDE = (
    "await_bridged() was called outside the bridge: run the synchronous function by `await"
    " pgbackend.bridged(function)(...)`, or await this directly in asynchronous code"
)
_ABANDONED = "the bridged call was closed while it waited: nothing is left to await it"


class BridgeError(RuntimeError):
    """Something was awaited from synchronous code where that is not possible."""


class CallClosedError(BridgeError):
    """Something was awaited in a bridged call that was closed."""


# What a greenlet hands out when a call has ended: the outcome is among its attributes.
_ENDED = object()

# How many greenlets a thread keeps for calls to come: to make one costs more than a switch.
_KEPT = 100


class _Bridge(greenlet):
    """The greenlet that outermost calls of `run_bridged` run in, one after the other."""

    # The task whose steps drive this greenlet. It may differ from the running task: an
    # eager task starts inside the greenlet of the task that creates it.
    owner: Any = None
    # What the call that has just ended returned or raised.
    returned: Any = None
    raised: BaseException | None = None
    # Called, last registered first, when the function has ended; see `on_exit`. A dict
    # for its order and because each is kept once.
    exits: dict[Callable[[], None], None] | None = None
    # True once the coroutine driving this greenlet was closed: nobody is left to await.
    abandoned = False
    # The thread that it belongs to: it cannot be switched to from another.
    thread = 0
    # Whether it is the bridge of something that has a session of its own; see `last`.
    lasting = False
    # What takes the callbacks of `on_end`; None: they are called when the function has ended.
    keep: Callable[[Callable[[], None]], None] | None = None
    # What `keep_here` was given in the call that runs.
    here: Any = None


class _Idle(threading.local):
    """The calling thread's greenlets that wait for a call."""

    def __init__(self) -> None:
        # On loops that call back from Python code only.
        self.bridges: list[_Bridge] = []
        # On the last other loop.
        self.on_loop: list[_Bridge] = []
        self.loop: Callable[[], AbstractEventLoop | None] = _no_loop


def _no_loop() -> None:
    """Stand for a reference to a loop where there was none yet."""


_idle = _Idle()

# The tasks whose first step runs where they are made, from Python 3.12 on: asyncio's private name.
# Without it some of them may be starting at any time.
_starting: Any = getattr(tasks, "_eager_tasks", [None] if sys.version_info >= (3, 12) else [])


def calls_from_python(loop: AbstractEventLoop | None) -> bool:
    """Return whether *loop* calls back from Python code only, as asyncio's own do.

    uvloop calls back from within libuv, which keeps pointers into the C stack meanwhile. A
    greenlet that was started elsewhere may have its own stack laid over what they point to, and
    whoever then tells libuv to forget a socket writes there. So in callbacks of such a loop no
    greenlet may be resumed, or used again; tasks that it runs later are safe. See `_in_step`.
    """
    return loop is None or isinstance(loop, SelectorEventLoop)


def _in_step() -> bool:
    """Return whether the caller runs in a step of a task that the loop has called by itself.

    A loop such as uvloop's does that when libuv has no pointers into the C stack, and always at
    one depth of it: a greenlet that began in a step may run in any later one. A task may also be
    started in the middle of a callback; its first step is then counted as none.
    """
    return not _starting and current_task() is not None


def may_touch_loop(loop: AbstractEventLoop) -> bool:
    """Return whether the caller may tell *loop* to forget a socket now.

    Not from a greenlet inside a callback from libuv, where the collector may end a call; see
    `calls_from_python`.
    """
    bridge = getcurrent()
    if calls_from_python(loop) or not isinstance(bridge, _Bridge):
        return True
    # A call that is closed unwinds as its own task, wherever that happens.
    return _get_running_loop() is not loop or (_in_step() and not bridge.abandoned)


def may_run_nested(loop: AbstractEventLoop) -> bool:
    """Return whether *loop* was changed so that it may be run while it runs, as in notebooks.

    Who does that, nest_asyncio for one, replaces the method that calls the ready callbacks.
    """
    turn = getattr(type(loop), "_run_once", None)
    return turn is not None and turn.__module__ != BaseEventLoop.__module__


def is_bridged() -> bool:
    """Return whether the caller runs bridged, so that `await_bridged` is possible.

    True if the current greenlet is the bridge's and belongs to the running task.
    """
    bridge = getcurrent()
    if not isinstance(bridge, _Bridge):
        return False
    try:
        return bridge.owner is current_task()
    except RuntimeError:
        # No loop runs: this is a child process, forked off inside the bridge.
        return False


def keep_here(value: object) -> None:
    """Keep *value* as ``here`` of the running greenlet until its call ends, if that is bridged.

    Who reads it checks that it was kept in the same context: an eager task may run in the greenlet
    of the task that starts it, and a nested run of the event loop others.
    """
    if is_bridged():
        bridge: Any = getcurrent()
        bridge.here = value


def _forget_here() -> None:
    """Forget what a forked child found: nothing is bridged there."""
    bridge = getcurrent()
    if isinstance(bridge, _Bridge):
        bridge.here = None


os.register_at_fork(after_in_child=_forget_here)


def await_bridged(awaitable: Awaitable[T]) -> T:
    """Wait for *awaitable* from synchronous code that runs bridged and return its result.

    Equivalent to ``await awaitable``, cancellation included. Without suspension there is
    no switch: only what the awaitable yields to the event loop leaves the greenlet.

    Raise `BridgeError` outside the bridge (a coroutine given is closed, so that it is not
    reported as never awaited), and when the bridged call was closed while it waited.
    """
    if not is_bridged():
        _refuse(awaitable, _OUTSIDE)
    # The frame lives in the greenlet: a local that names the greenlet across a switch would
    # be a reference cycle, and keep an abandoned one from being collected.
    if getattr(getcurrent(), "abandoned", False):
        _refuse(awaitable, _ABANDONED, CallClosedError)

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


def can_wait() -> bool:
    """Return whether `await_bridged` may be called: bridged, in a call that was not closed."""
    return is_bridged() and not getattr(getcurrent(), "abandoned", False)


def check_bridged() -> None:
    """Raise `BridgeError` where nothing can be awaited, before anything is begun."""
    if not is_bridged():
        raise BridgeError(_OUTSIDE)
    bridge: Any = getcurrent()
    if bridge.abandoned:
        raise CallClosedError(_ABANDONED)


def await_future(future: Future[T]) -> T:
    """Do what `await_bridged` does, for a pending future, where the caller knows it is bridged."""
    _suspend(next(future.__await__()))
    return future.result()


async def _as_coroutine(awaitable: Awaitable[T]) -> T:
    return await awaitable


# Containers, and what is called before a wait while one of them is not empty; see `before_waits`.
_suspects: tuple[Collection[Any], ...] = ()


def _look() -> None:
    """Do nothing, unless `before_waits` said what."""


def before_waits(suspects: tuple[Collection[Any], ...], look: Callable[[], None]) -> None:
    """Call *look* before each wait that leaves a greenlet while one of *suspects* is not empty."""
    global _suspects, _look
    _suspects, _look = suspects, look


def _suspend(waiting: Any) -> Any:
    """Hand what an awaitable yielded to the event loop and return what it answers."""
    if any(_suspects):
        _look()
    bridge: Any = getcurrent()
    if bridge.abandoned:
        raise CallClosedError(_ABANDONED)
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

    Called from code that is already bridged, it is a plain call. Exceptions pass through
    as they are; cancelling the task raises CancelledError inside the function, from the
    `await_bridged` it waits in.
    """
    if is_bridged():
        return function(*args, **kwargs)
    return await _drive(function, args, kwargs)


@coroutine
def _drive(
    function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Generator[Any, Any, T]:
    """Run one outermost bridged call to its end, yielding what it waits for."""
    driver = getcurrent()
    loop = _get_running_loop()
    if calls_from_python(loop):
        idle, reuses = _idle.bridges, True
    else:
        idle, reuses = _idle_on(loop), _in_step()
    del loop
    if idle and reuses:
        bridge = idle.pop()
        bridge.parent = driver
    else:
        bridge = _Bridge(_serve, driver)
        bridge.thread = threading.get_ident()
        # Without arguments: it would keep those as long as it lives.
        bridge.switch()
    bridge.owner = current_task()
    bridge.gr_context = driver.gr_context
    del driver
    result = bridge.switch(function, args, kwargs)
    while result is not _ENDED:
        if bridge.dead:
            return result  # type: ignore[no-any-return]  # greenlet.switch() is untyped
        try:
            value = yield result
        except GeneratorExit:
            # The coroutine is being closed or collected: the function may unwind, but there
            # is no loop any more to wait in.
            bridge.abandoned = True
            _unwind(bridge)
            raise
        except BaseException as error:
            bridge.parent = getcurrent()
            result = bridge.throw(error)
        else:
            # The task may be resumed from another greenlet than it was suspended in.
            bridge.parent = getcurrent()
            result = bridge.switch(value)
    result, raised = bridge.returned, bridge.raised
    bridge.returned = bridge.raised = None
    bridge.owner = bridge.gr_context = bridge.keep = bridge.here = None
    bridge.lasting = False
    # It keeps its parent, too: the thread's own greenlet, or it was not only ours.
    if len(idle) < _KEPT and bridge.parent.parent is None:  # type: ignore[union-attr]  # has one
        idle.append(bridge)
    # What is raised keeps this frame: without a name a greenlet that is not kept ends here.
    del bridge
    if raised is not None:
        context = raised.__context__
        try:
            raise raised
        finally:
            # Raised anew it would lose that; and its traceback leads here.
            raised.__context__ = context
            del context, raised
    return result  # type: ignore[no-any-return]  # as above


def _idle_on(loop: Any) -> list[_Bridge]:
    """Return the calling thread's idle greenlets that began on *loop*."""
    if _idle.loop() is not loop:
        _idle.loop, _idle.on_loop = ref(loop), []
    return _idle.on_loop


def _unwind(bridge: _Bridge) -> None:
    """Let the function of a closed call unwind, in the thread that the greenlet belongs to.

    The coroutine may have been collected in another one.
    """
    if bridge.thread == threading.get_ident():
        _throw_exit(bridge)
        return
    owner: Task[Any] | None = bridge.owner
    loop = None if owner is None else owner.get_loop()
    # With its loop closed there is nothing left to hand back.
    if loop is not None and not loop.is_closed():
        loop.call_soon_threadsafe(_throw_exit, bridge, context=Context())


def _throw_exit(bridge: _Bridge) -> None:
    """Unwind the function as if its own task had closed it: what it looks up is that one's."""
    loop, owner = _get_running_loop(), bridge.owner
    bridge.parent = getcurrent()
    if loop is None or owner is None or owner.get_loop() is not loop:
        bridge.throw(GreenletExit)
        return
    running = current_task()
    if running is owner:
        bridge.throw(GreenletExit)
        return
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
    """Run one call after the other, inside the greenlet, which is idle in between.

    Then nothing of a call may be kept here, not even as the argument of a switch. A greenlet
    whose call was abandoned ends with it, and so does one that is collected.
    """
    # No name for the greenlet itself: see `await_bridged`.
    current: Any = getcurrent
    while True:
        function, args, kwargs = current().parent.switch(_ENDED)
        try:
            current().returned = _call(function, args, kwargs)
        except GreenletExit:
            raise
        except BaseException as error:
            if current().abandoned:
                raise
            current().raised = error
        del function, args, kwargs
        if current().abandoned:
            return


def _call(function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
    """Run *function* and then what it registered by `on_exit`, inside the greenlet."""
    try:
        return function(*args, **kwargs)
    finally:
        exits = getattr(getcurrent(), "exits", None)
        if exits:
            _call_exits(exits)


def _call_exits(exits: dict[Callable[[], None], None]) -> None:
    """Call the last registered first; one that fails keeps no other from running."""
    try:
        exits.popitem()[0]()
    finally:
        if exits:
            _call_exits(exits)


def on_exit(callback: Callable[[], None]) -> None:
    """Call *callback* at the end of the outermost bridged call around the caller.

    It runs inside the bridge, also after an exception, and may wait by `await_bridged`. A
    callback registered again (by equality) is still called once.
    """
    if not is_bridged():
        raise BridgeError("on_exit() was called outside the bridge")
    bridge: Any = getcurrent()
    if bridge.exits is None:
        bridge.exits = {}
    bridge.exits[callback] = None


def last(keep: Callable[[Callable[[], None]], None] | None = None) -> None:
    """Mark the outermost bridged call around the caller as one that lasts, such as a request.

    What belongs to a database session may be kept until its end. If it is only a part of what
    lasts, *keep* takes the callbacks that are to be called at the end of the whole.
    """
    if not is_bridged():
        raise BridgeError("last() was called outside the bridge")
    bridge: Any = getcurrent()
    bridge.lasting = True
    bridge.keep = keep


def on_end(callback: Callable[[], None]) -> None:
    """Call *callback* at the end of what `last` marked, as `on_exit` does at that of a call.

    It may not wait.
    """
    keep = getattr(getcurrent(), "keep", None)
    if keep is None:
        on_exit(callback)
    else:
        keep(callback)


def lasts() -> bool:
    """Return whether `last` marked the outermost bridged call around the caller."""
    return bool(getattr(getcurrent(), "lasting", False))


def ending() -> Callable[[Callable[[], None]], None] | None:
    """Return what does as `on_end` for what `last` marked around the caller, also called elsewhere.

    None if nothing was marked. After that end it does nothing.
    """
    bridge: Any = getcurrent()
    if not getattr(bridge, "lasting", False):
        return None
    keep: Callable[[Callable[[], None]], None] | None = bridge.keep
    return functools.partial(_on_exit_of, ref(bridge)) if keep is None else keep


def _on_exit_of(bridge: Callable[[], _Bridge | None], callback: Callable[[], None]) -> None:
    found = bridge()
    if found is not None and found.lasting:
        if found.exits is None:
            found.exits = {}
        found.exits[callback] = None
