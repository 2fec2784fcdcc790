"""A detector of blocking code: it names the function that held the event loop for too long.

What an application calls on the loop's own thread, bridged or in a coroutine, stops every
other request if it blocks there: `time.sleep`, a synchronous client of some service, long
computing. `watch` starts a heartbeat on the running loop and a thread beside it. When the
heartbeat is overdue, and the loop is not just waiting for something to do, the thread reads
the stack of the loop's thread and logs a warning to ``pgbackend.detector``, while the loop is
still held.

What it does not see, or not well:

- C code that holds the GIL the whole time is seen only when it returns, since the thread
  cannot run before. Of C code that releases it, the line that calls it is named. C code that
  uvloop calls back with no Python between is not told from an idle loop.
- What blocks for less than 1.5 times the bound may fall between two heartbeats.
- Many short callbacks in a row hold the loop together, but none of them is to blame: no
  warning.
- The stack of a bridged function ends where the bridge begins: who awaited it is not seen.
- Time in which the process was suspended counts as held if a callback was running then, in
  one warning at most.

It is a thread: where there is one, Python 3.12 and later warn of ``os.fork()``.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from asyncio import AbstractEventLoop
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


class _Place(NamedTuple):
    """A function, and the line in it that runs."""

    function: str
    filename: str
    line: int

    @classmethod
    def of(cls, frame: FrameType) -> _Place:
        function = f"{frame.f_globals.get('__name__')}.{frame.f_code.co_qualname}"
        return cls(function, frame.f_code.co_filename, frame.f_lineno)

    def __str__(self) -> str:
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
        # Since when that holder is known to hold the loop, and whether that was told.
        self._since = self.due
        self._told = False
        # The lines named: when, and how often since.
        self._named: dict[tuple[str, int], tuple[float, int]] = {}

    def look(self) -> float:
        """Warn if the loop is held too long; return the seconds until the next look."""
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
            return half
        if sample.holder is not self._holder or due != self._missed:
            # It cannot have begun before the last look, which saw another, or none. The stack
            # is read twice for that reason; once, if the thread itself came too late.
            self._holder, self._missed = sample.holder, due
            self._since, self._told = max(due, last), False
        held = now - self._since
        if held < self.seconds:
            return self.seconds - held
        if not self._told:
            self._told = True
            self._warn(held, sample)
        return half

    def _sample(self) -> _Sample | None:
        """Return what runs on the loop, None if nothing does.

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
            if code is _BEAT or code is _TURN:
                return None
            if code is _HANDLE or code is self.caller:
                break
            if innermost is None:
                innermost = _Place.of(frame)
            if named is None and _is_application(frame):
                named = _Place.of(frame)
            outermost = code
            frame = frame.f_back
        if innermost is None:
            if frame is None or frame.f_code is not _HANDLE:
                return None
            outermost, innermost = _HANDLE, _Place.of(frame)
        return _Sample(outermost if task is None else ref(task), innermost, named or innermost)

    def _warn(self, held: float, sample: _Sample) -> None:
        place = sample.named
        now = monotonic()
        last, repeats = self._named.get((place.filename, place.line), (-REPEAT_SECONDS, 0))
        if now - last < REPEAT_SECONDS:
            self._named[place.filename, place.line] = (last, repeats + 1)
            return
        self._named[place.filename, place.line] = (now, 0)
        logger.warning(
            "%s has held the event loop for %.2f s%s%s: it blocks every other request. Await"
            " an asynchronous form, or run it in a thread by sync_to_async; the setting"
            " PGBACKEND_BLOCKING_TIME changes or ends this warning",
            place,
            held,
            f", in {sample.innermost}" if sample.innermost != place else "",
            f", and {repeats} times more since it was last named" if repeats else "",
        )


def _is_application(frame: FrameType) -> bool:
    package = str(frame.f_globals.get("__name__")).partition(".")[0]
    filename = frame.f_code.co_filename
    return package not in _LIBRARIES and not any(folder in filename for folder in _INSTALLED)


_watched_loops: WeakKeyDictionary[AbstractEventLoop, _Watched] = WeakKeyDictionary()

# A forked child has none of the threads: it watches its loops anew, inherited ones too.
os.register_at_fork(after_in_child=_watched_loops.clear)
