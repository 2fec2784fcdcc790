"""A detector of blocking code: it names the function that held the event loop for too long.

What an application calls on the loop's own thread, bridged or in a coroutine, stops every
other request if it blocks there: `time.sleep`, a synchronous client of some service, long
computing. `watch` starts a heartbeat on the running loop and a thread beside it. When the
heartbeat is overdue, and the loop is not just waiting for something to do, the thread reads
the stack of the loop's thread. When the loop goes on, a warning to ``pgbackend.detector`` says how
long that was, to half the time between two heartbeats; if it does not go on for `STILL_SECONDS`,
the thread says so meanwhile.

What it does not see, or not well:

- C code that holds the GIL the whole time is seen only when it returns, since the thread
  cannot run before. Of C code that releases it, the line that calls it is named. C code that
  uvloop calls back with no Python between is not told from an idle loop.
- What blocks for less than 1.5 times the bound may fall between two heartbeats.
- Imports are not named, which end with the first request for good: those of the URLconf, mostly.
  Nor is the event loop's own code where it calls nobody else's.
- Many short callbacks in a row hold the loop together, but none of them is to blame: no
  warning.
- The stack of a bridged function ends where the bridge begins: who awaited it is not seen.
- Time in which the process was suspended counts as held if a callback was running then, in
  one warning at most.

It is a thread: where there is one, Python 3.12 and later warn of ``os.fork()``.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import logging
import os
import sys
from asyncio import AbstractEventLoop
from collections import Counter
from contextvars import Context
from queue import Empty, SimpleQueue
from threading import Thread, get_ident
from time import monotonic
from types import CodeType, FrameType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

logger = logging.getLogger(__name__)

# Seconds in which a line is named only once on one loop.
REPEAT_SECONDS = 60.0

# After how many seconds it is told that the loop is held, although it still is.
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
        # The heartbeat would keep the context of the request that happened to come first.
        Context().run(_start, loop, seconds)


def _start(loop: AbstractEventLoop, seconds: float) -> None:
    if not seconds > 0:
        raise ValueError(f"watch() takes a number of seconds above 0, not {seconds!r}")
    ended: SimpleQueue[Any] = SimpleQueue()
    watched = _Watched(loop, seconds)
    heartbeat = _Heartbeat(watched)
    # SimpleQueue.put may be called by the garbage collector, in the middle of its own get.
    watched.heartbeat = ref(heartbeat, ended.put)
    # A daemon: a loop that is never closed must not keep the process from exiting.
    Thread(target=_run, args=(watched, ended), name="pgbackend-detector", daemon=True).start()
    _watched_loops[loop] = watched
    loop.call_soon(heartbeat)


def _run(watched: _Watched, ended: SimpleQueue[Any]) -> None:
    """Look at the loop, in a thread, until its heartbeat is gone."""
    pause = watched.seconds / 2
    while True:
        try:
            ended.get(timeout=pause)
        except Empty:
            pause = watched.look()
        else:
            watched.ended(monotonic())
            return


class _Heartbeat:
    """Calls itself again and again on the loop.

    Only the loop's timer owns it, so it goes when the loop is closed or collected.
    """

    __slots__ = ("__weakref__", "_watched")

    def __init__(self, watched: _Watched) -> None:
        self._watched = watched

    def __call__(self) -> None:
        loop = asyncio.get_running_loop()
        watched = self._watched
        if _watched_loops.get(loop) is not watched:
            # In a child process that runs its parent's loop: the thread is the parent's.
            return
        watched.ended(monotonic())
        watched.thread = get_ident()
        watched.caller = sys._getframe(1).f_code
        watched.due = monotonic() + watched.interval
        loop.call_later(watched.interval, self)


# Where the walk from the innermost frame outwards ends: no callback runs in a heartbeat or
# right inside a turn of the loop; one does inside a handle. uvloop has no such frames, see
# `_Watched.caller`.
_BEAT = _Heartbeat.__call__.__code__
_HANDLE = asyncio.Handle._run.__code__
_TURN: CodeType = asyncio.BaseEventLoop._run_once.__code__  # type: ignore[attr-defined]  # private
_IMPORT: CodeType = importlib._bootstrap._find_and_load.__code__  # type: ignore[attr-defined]  # private


class _Place(NamedTuple):
    """A function, and the line in it that runs."""

    function: str
    filename: str
    line: int

    @classmethod
    def of(cls, frame: FrameType) -> _Place:
        function = f"{frame.f_globals.get('__name__')}.{frame.f_code.co_qualname}"
        return cls(function, frame.f_code.co_filename, frame.f_lineno)

    @classmethod
    def called_back(cls, frame: FrameType) -> _Place | None:
        """Return the function in C that a handle of asyncio's calls; None for one of asyncio's."""
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
    """What was seen of a callback that runs."""

    # The same object in each sample of one callback: a weak reference to its task, or its code.
    holder: object
    innermost: _Place
    # The innermost one of the application's, if there is any.
    named: _Place


# Where a holder was: the application's place and the innermost one.
_Seen = tuple[_Place, _Place]


class _Watched:
    """What the heartbeat of one loop and the thread that looks at it know of each other."""

    def __init__(self, loop: AbstractEventLoop, seconds: float) -> None:
        self.seconds = seconds
        # Twice in the time that is allowed: what holds the loop for 1.5 times that long is
        # always seen. Not more often than 20 times a second, so that an idle loop stays idle.
        self.interval = max(seconds / 2, 0.05)
        self.heartbeat: ref[_Heartbeat] | None = None
        self._loop = ref(loop)
        # The thread that runs the loop.
        self.thread = get_ident()
        # When the next heartbeat is to come; the first as soon as the present callback ends.
        self.due = monotonic()
        # What called the last heartbeat: asyncio's handle, or, since Cython's functions have
        # no frames, the function that runs uvloop's loop.
        self.caller: CodeType | None = None
        # What the last look saw: the holder, the heartbeat it kept from coming, and when.
        self._holder: object = None
        self._missed = self._looked = self.due
        # Since when that holder is known to hold the loop.
        self._since = self.due
        # How often it was seen where.
        self._seen: Counter[_Seen] = Counter()
        # The same when it has held the loop too long, at most one; taken by whoever, the thread or
        # the heartbeat, sees first that it has ended. And whether it was told.
        self._over: list[Counter[_Seen]] = []
        self._told = False
        # The lines named: when, and how often since.
        self._named: dict[tuple[str, int], tuple[float, int]] = {}

    def look(self) -> float:
        """See who holds the loop, and whether too long; return the seconds until the next look."""
        now, due = monotonic(), self.due
        half = self.seconds / 2
        if now - due < half:
            return due + half - now
        sample = self._sample()
        if self.due != due:
            # The heartbeat came meanwhile: the sample is of something else.
            return half
        last, self._looked = self._looked, now
        if sample is None:
            self._holder = None
            self.ended(last)
            return half
        if sample.holder is not self._holder or due != self._missed:
            self.ended(last)
            # It cannot have begun before the last look, which saw another, or none. The stack
            # is read twice for that reason; once, if the thread itself came too late.
            self._holder, self._missed = sample.holder, due
            self._since, self._told = max(due, last), False
            self._seen = Counter()
        self._seen[sample.named, sample.innermost] += 1
        held = now - self._since
        if held < self.seconds:
            return self.seconds - held
        if not self._over and not self._told:
            self._over.append(self._seen)
        if held >= STILL_SECONDS and not self._told:
            self._told = True
            self._warn(held, self._seen, "has held the event loop for {} s and still does")
        return half

    def ended(self, when: float) -> None:
        """Warn if the last holder, which has ended, held the loop too long."""
        try:
            seen = self._over.pop()
        except IndexError:
            return
        told, self._told = self._told, False
        # It began at some time between two heartbeats.
        held = when - self._since + self.interval / 2
        self._warn(held, seen, "has held the event loop for {} s", told=told)

    def _sample(self) -> _Sample | None:
        """Return what runs on the loop, None if nothing does that is to be named.

        Loop, task and frames must be let go at once, before anything that may wait: whoever
        has the last reference runs the finalizers, and these belong on the loop's thread.
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
            if code is _BEAT or code is _TURN or code is _IMPORT:
                return None
            if code is _HANDLE or code is self.caller:
                break
            if innermost is None and _package(frame) not in _LOOPS:
                innermost = _Place.of(frame)
            if named is None and _is_application(frame):
                named = _Place.of(frame)
            outermost = code
            frame = frame.f_back
        if innermost is None:
            if outermost is not None or frame is None or frame.f_code is not _HANDLE:
                return None
            outermost, innermost = _HANDLE, _Place.called_back(frame)
            if innermost is None:
                return None
        return _Sample(outermost if task is None else ref(task), innermost, named or innermost)

    def _warn(self, held: float, seen: Counter[_Seen], words: str, *, told: bool = False) -> None:
        # Where it mostly was.
        ((place, innermost), _), *_ = seen.most_common(1)
        now = monotonic()
        last, repeats = self._named.get((place.filename, place.line), (-REPEAT_SECONDS, 0))
        if now - last < REPEAT_SECONDS and not told:
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


_watched_loops: WeakKeyDictionary[AbstractEventLoop, _Watched] = WeakKeyDictionary()

# A forked child has none of the threads: it watches its loops anew, inherited ones too.
os.register_at_fork(after_in_child=_watched_loops.clear)
