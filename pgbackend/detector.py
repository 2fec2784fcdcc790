"""A detector of blocking code: it names the function that held the event loop for too long.

Code on the loop's own thread, bridged or in a coroutine, stops every other request if it blocks:
`time.sleep`, a synchronous client of some service, long computing. `watch` starts a heartbeat on
the running loop and a thread beside it. If the heartbeat is overdue, and the loop is not just
waiting for something to do, the thread reads the stack of the loop's thread. When the loop goes on,
a warning to ``pgbackend.detector`` says how long it was held, to half the time between two
heartbeats. If the loop does not go on for `STILL_SECONDS`, the thread warns meanwhile.

The detector does not see, or does not see well:

- C code that holds the GIL the whole time is seen only when it returns, since the thread cannot run
  before. For C code that releases the GIL, the line that calls it is named. C code that uvloop
  calls back with no Python in between cannot be told from an idle loop.
- Code that blocks for less than 1.5 times the bound may fall between two heartbeats.
- Imports are not named: they mostly end with the first request, such as those of the URLconf. The
  event loop's own code is not named unless it calls other code.
- Many short callbacks in a row hold the loop together, but none of them is to blame: there is no
  warning.
- The stack of a bridged function ends where the bridge begins: the awaiting coroutine is not seen.
- Time in which the process was suspended counts as held if a callback was running then, in one
  warning at most.

The detector needs a thread: Python 3.12 and later warn of ``os.fork()`` in a process with threads.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import sys
from asyncio import AbstractEventLoop
from collections import Counter
from contextvars import Context
from importlib.machinery import ModuleSpec, SourceFileLoader
from queue import Empty, SimpleQueue
from threading import Thread, get_ident
from time import monotonic
from types import CodeType, FrameType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

from . import findings

logger = logging.getLogger(__name__)

# For how many seconds a line is not named again on one loop.
REPEAT_SECONDS = 60.0

# After how many seconds a warning is logged although the loop is still held.
STILL_SECONDS = 2.0

# Top-level modules whose functions are not the application's, wherever they are installed.
_LIBRARIES = sys.stdlib_module_names | {
    "asgiref",
    "django",
    "greenlet",
    "pgbackend",
    "psycopg",
    "psycopg_pool",
}
_INSTALLED = tuple(f"{os.sep}{name}{os.sep}" for name in ("site-packages", "dist-packages"))


# Top-level modules of event loops.
_LOOPS = frozenset({"asyncio", "_asyncio", "selectors", "uvloop"})


def watch(seconds: float) -> None:
    """Warn from now on of functions that hold the running loop longer than *seconds*.

    Call it in a coroutine or in bridged code on the loop. A loop is watched once, until it is
    closed: further calls for it do nothing, whatever their *seconds*.

    Raise RuntimeError where no loop runs or no thread can be started, ValueError if *seconds*
    is not above 0.
    """
    loop = asyncio.get_running_loop()
    if loop not in _watched_loops:
        # Use an empty context: the heartbeat would keep that of the request that happened to come
        # first.
        Context().run(_start, loop, seconds)


def _start(loop: AbstractEventLoop, seconds: float) -> None:
    if not seconds > 0:
        raise ValueError(f"watch() takes a number of seconds above 0, not {seconds!r}")
    ended: SimpleQueue[Any] = SimpleQueue()
    watched = _WatchedLoop(loop, seconds)
    heartbeat = _Heartbeat(watched)
    # The garbage collector may call SimpleQueue.put safely, even in the middle of its own get.
    watched.heartbeat = ref(heartbeat, ended.put)
    # Use a daemon thread: a loop that is never closed must not keep the process from exiting.
    Thread(target=_run, args=(watched, ended), name="pgbackend-detector", daemon=True).start()
    _watched_loops[loop] = watched
    loop.call_soon(heartbeat)


def _run(watched: _WatchedLoop, ended: SimpleQueue[Any]) -> None:
    """Watch the loop, in a thread, until its heartbeat is gone."""
    pause = watched.seconds / 2
    while True:
        try:
            ended.get(timeout=pause)
        except Empty:
            pause = watched.look()
        else:
            watched.report_ended(monotonic())
            return


class _Heartbeat:
    """Calls itself again and again on the loop.

    Only the loop's timer owns the heartbeat, so it goes when the loop is closed or collected.
    """

    __slots__ = ("__weakref__", "_watched")

    def __init__(self, watched: _WatchedLoop) -> None:
        self._watched = watched

    def __call__(self) -> None:
        loop = asyncio.get_running_loop()
        watched = self._watched
        if _watched_loops.get(loop) is not watched:
            # A child process runs its parent's loop: the thread exists in the parent only.
            return
        watched.report_ended(monotonic())
        watched.thread = get_ident()
        watched.caller = sys._getframe(1).f_code
        watched.due = monotonic() + watched.interval
        loop.call_later(watched.interval, self)


# The code where the walk from the innermost frame outwards ends. No callback runs in a heartbeat,
# or directly in an iteration of the loop; one does in a handle. uvloop has no such frames; see
# `_WatchedLoop.caller`.
_BEAT = _Heartbeat.__call__.__code__
_HANDLE = asyncio.Handle._run.__code__
_TURN: CodeType = asyncio.BaseEventLoop._run_once.__code__  # type: ignore[attr-defined]  # private

# The files, as code names them, of the two modules that import others. All of their functions
# count as an import: `from package import name` runs in one of them after `package` is there, and a
# loader that is called directly reads a module's source in another.
_IMPORTING = frozenset(
    function.__code__.co_filename for function in (ModuleSpec.__init__, SourceFileLoader.get_data)
)


class _CodePosition(NamedTuple):
    """A function, and the line that runs in it."""

    function: str
    filename: str
    line: int

    @classmethod
    def of(cls, frame: FrameType) -> _CodePosition:
        function = f"{frame.f_globals.get('__name__')}.{frame.f_code.co_qualname}"
        return cls(function, frame.f_code.co_filename, frame.f_lineno)

    @classmethod
    def called_back(cls, frame: FrameType) -> _CodePosition | None:
        """Return the C function that a handle of asyncio calls; None for asyncio's own."""
        handle = frame.f_locals.get("self")
        function = getattr(handle, "_callback", None)
        while isinstance(function, functools.partial):
            function = function.func
        module = getattr(function, "__module__", None)
        if not module or module.partition(".")[0] in _LOOPS:
            return None
        name = getattr(function, "__qualname__", repr(function))
        return cls(f"{module}.{name}, called by the event loop,", "", 0)

    def __str__(self) -> str:
        if not self.filename:
            return self.function
        folders = [os.path.join(str(folder), "") for folder in sys.path if folder]
        longest = max(
            (each for each in folders if self.filename.startswith(each)), key=len, default=""
        )
        return f"{self.function} ({self.filename.removeprefix(longest)}, line {self.line})"


class _Sample(NamedTuple):
    """One observation of a running callback."""

    # The callback's identity, the same object in each sample: a weak reference to its task, or its
    # code.
    holder: object
    innermost: _CodePosition
    # The application's innermost place, if it has one.
    named: _CodePosition


# A place of the holder: the application's place and the innermost one.
_Seen = tuple[_CodePosition, _CodePosition]


class _WatchedLoop:
    """The state that a loop's heartbeat shares with the thread that watches the loop."""

    def __init__(self, loop: AbstractEventLoop, seconds: float) -> None:
        self.seconds = seconds
        # Two heartbeats in the allowed time: code that holds the loop for 1.5 times that long is
        # always seen. Not more than 20 heartbeats a second, so that an idle loop stays idle.
        self.interval = max(seconds / 2, 0.05)
        self.heartbeat: ref[_Heartbeat] | None = None
        self._loop = ref(loop)
        # The id of the thread that runs the loop.
        self.thread = get_ident()
        # When the next heartbeat is due; the first is due when the present callback ends.
        self.due = monotonic()
        # The code that called the last heartbeat: asyncio's handle or, since Cython's functions
        # have no frames, the function that runs uvloop's loop.
        self.caller: CodeType | None = None
        # The result of the last look: the holder, the heartbeat that it delayed, and the time of
        # the look.
        self._holder: object = None
        self._missed = self._looked = self.due
        # Since when the holder is known to hold the loop.
        self._since = self.due
        # How often the holder was seen at each place.
        self._seen: Counter[_Seen] = Counter()
        # `_too_long`: the counts of a holder that has held the loop too long; at most one entry.
        # The thread or the heartbeat takes it, whichever first sees that the holder has ended.
        # `_was_warned`: whether a warning was logged meanwhile.
        self._too_long: list[Counter[_Seen]] = []
        self._was_warned = False
        # The lines that were named: when, and how often since.
        self._named: dict[tuple[str, int], tuple[float, int]] = {}

    def look(self) -> float:
        """Check what holds the loop, and how long; return the seconds until the next look."""
        now, due = monotonic(), self.due
        half = self.seconds / 2
        if now - due < half:
            return due + half - now
        sample = self._sample()
        if self.due != due:
            # The heartbeat came meanwhile, so the sample shows something else.
            return half
        last, self._looked = self._looked, now
        if sample is None:
            self._holder = None
            self.report_ended(last)
            return half
        if sample.holder is not self._holder or due != self._missed:
            self.report_ended(last)
            # The holder cannot have begun before the last look, which saw another one, or none.
            # This is why the stack is read twice; once, if the thread itself came too late.
            self._holder, self._missed = sample.holder, due
            self._since, self._was_warned = max(due, last), False
            self._seen = Counter()
        self._seen[sample.named, sample.innermost] += 1
        held = now - self._since
        if held < self.seconds:
            return self.seconds - held
        if not self._too_long and not self._was_warned:
            self._too_long.append(self._seen)
        if held >= STILL_SECONDS and not self._was_warned:
            self._was_warned = True
            self._warn(held, self._seen, "has held the event loop for {} s and still does")
        return half

    def report_ended(self, when: float) -> None:
        """Warn if the last holder, which has ended, held the loop too long."""
        try:
            seen = self._too_long.pop()
        except IndexError:
            return
        was_warned, self._was_warned = self._was_warned, False
        # The holder began at some time between two heartbeats.
        held = when - self._since + self.interval / 2
        self._warn(held, seen, "has held the event loop for {} s", was_warned=was_warned)

    def _sample(self) -> _Sample | None:
        """Return what runs on the loop, or None if nothing is to be named.

        The references to loop, task and frames must be dropped at once, before anything that may
        wait: the thread that drops the last reference runs the finalizers, which belong on the
        loop's thread.
        """
        loop = self._loop()
        if loop is None or not loop.is_running():
            return None
        task = asyncio.current_task(loop)
        frame = sys._current_frames().get(self.thread)
        outermost: CodeType | None = None
        innermost = named = None
        while frame is not None:
            code = frame.f_code
            if code is _BEAT or code is _TURN or code.co_filename in _IMPORTING:
                return None
            if code is _HANDLE or code is self.caller:
                break
            if innermost is None and _package(frame) not in _LOOPS:
                innermost = _CodePosition.of(frame)
            if named is None and _is_application(frame):
                named = _CodePosition.of(frame)
            outermost = code
            frame = frame.f_back
        if innermost is None:
            if outermost is not None or frame is None or frame.f_code is not _HANDLE:
                return None
            outermost, innermost = _HANDLE, _CodePosition.called_back(frame)
            if innermost is None:
                return None
        return _Sample(outermost if task is None else ref(task), innermost, named or innermost)

    def _warn(
        self, held: float, seen: Counter[_Seen], words: str, *, was_warned: bool = False
    ) -> None:
        # The place where the holder was seen most often.
        ((place, innermost), _), *_ = seen.most_common(1)
        findings.note(str(place), held, goes_on=was_warned)
        now = monotonic()
        last, repeats = self._named.get((place.filename, place.line), (-REPEAT_SECONDS, 0))
        if now - last < REPEAT_SECONDS and not was_warned:
            self._named[place.filename, place.line] = (last, repeats + 1)
            return
        self._named[place.filename, place.line] = (now, 0)
        logger.warning(
            "%s %s%s%s: it blocks every other request. Await"
            " an asynchronous form, or run it in a thread by sync_to_async; the setting"
            " PGBACKEND_BLOCKING_TIME changes or ends this warning",
            place,
            words.format(f"{held:.2f}"),
            f", in {innermost}" if innermost != place else "",
            f", and {repeats} times more since it was last named" if repeats else "",
        )


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__")).partition(".")[0]


def _is_application(frame: FrameType) -> bool:
    package = _package(frame)
    filename = frame.f_code.co_filename
    return package not in _LIBRARIES and not any(folder in filename for folder in _INSTALLED)


_watched_loops: WeakKeyDictionary[AbstractEventLoop, _WatchedLoop] = WeakKeyDictionary()

# A forked child has none of the threads: it watches its loops anew, including inherited ones.
os.register_at_fork(after_in_child=_watched_loops.clear)
