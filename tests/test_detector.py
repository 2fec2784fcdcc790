"""The detector: what holds the event loop is named, and nothing else is."""

import asyncio
import ctypes
import gc
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from pgbackend import bridged, detector
from tests.support.limits import PATIENCE
from tests.support.loops import EACH_NAME
from tests.support.script import PROLOGUE, ROOT, run_script

# Seconds that the loop may be held, and that functions here hold it.
BOUND = 0.1
HELD = 0.4
# A wider bound where nothing may be named, and seconds in which it would be.
WIDE = 0.5
LONG = 0.8


@pytest.fixture(params=EACH_NAME)
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    """A runner of asyncio's own loop, and one of uvloop's."""
    module = pytest.importorskip(request.param, reason="uvloop is not installed")
    with asyncio.Runner(loop_factory=module.new_event_loop) as runner:
        yield runner


class Warnings(logging.Handler):
    """The detector's warnings."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        assert record.levelno == logging.WARNING
        self.texts.append(record.getMessage())

    async def wait_for(self, count: int) -> None:
        """Wait until there are *count* warnings; fail after PATIENCE, or if there are more."""
        async with asyncio.timeout(PATIENCE):
            while len(self.texts) < count:
                await asyncio.sleep(0.01)
        assert len(self.texts) == count, self.texts

    async def check_none_before(self, mark: Callable[[], None]) -> None:
        """Check that no warning came before that of *mark*, which holds the loop."""
        mark()
        await self.wait_for(1)
        assert self.texts[0].startswith(place(mark))


@pytest.fixture
def warnings() -> Iterator[Warnings]:
    """What the detector logs during the test."""
    handler = Warnings()
    detector.logger.addHandler(handler)
    yield handler
    detector.logger.removeHandler(handler)


def place(function: Callable[..., Any]) -> str:
    """Return how a function is named that stays on the line below its ``def``."""
    line = function.__code__.co_firstlineno + 1
    return f"{__name__}.{function.__qualname__} (tests/test_detector.py, line {line})"


def detectors() -> list[threading.Thread]:
    """Return the detectors' threads."""
    return [each for each in threading.enumerate() if each.name == "pgbackend-detector"]


def report() -> None:
    time.sleep(HELD)


def mark() -> None:
    time.sleep(LONG)


async def asynchronous_report() -> None:
    time.sleep(HELD)  # noqa: ASYNC251  # what is to be found


def wait_in_library() -> None:
    threading.Event().wait(HELD)


def compute() -> None:
    until = time.monotonic() + HELD
    while time.monotonic() < until:
        pass


# What is named


@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
def test_bridged_function(runner: asyncio.Runner, warnings: Warnings, debug: bool) -> None:
    """A bridged function that blocks is named with module, file, line, and what to do."""

    async def main() -> None:
        asyncio.get_running_loop().set_debug(debug)
        detector.watch(BOUND)
        await bridged(report)()
        await warnings.wait_for(1)

    runner.run(main())
    assert warnings.texts[0].startswith(f"{place(report)} has held the event loop for 0.")
    assert warnings.texts[0].endswith(
        " s: it blocks every other request. Await an asynchronous form, or run it in a thread by"
        " sync_to_async; the setting PGBACKEND_BLOCKING_TIME changes or ends this warning"
    )


def test_coroutine(runner: asyncio.Runner, warnings: Warnings) -> None:
    """An `async def` that blocks is named."""

    async def main() -> None:
        detector.watch(BOUND)
        await asyncio.sleep(0.01)
        await asynchronous_report()
        await warnings.wait_for(1)

    runner.run(main())
    assert warnings.texts[0].startswith(place(asynchronous_report))


def test_callback(runner: asyncio.Runner, warnings: Warnings) -> None:
    """A function that the loop itself calls back is named."""

    async def main() -> None:
        detector.watch(BOUND)
        asyncio.get_running_loop().call_later(0.01, report)
        await warnings.wait_for(1)

    runner.run(main())
    assert warnings.texts[0].startswith(place(report))


def test_computing(runner: asyncio.Runner, warnings: Warnings) -> None:
    """Python code that computes for long is named."""

    async def main() -> None:
        detector.watch(BOUND)
        await bridged(compute)()
        await warnings.wait_for(1)

    runner.run(main())
    assert warnings.texts[0].startswith(f"{__name__}.compute (tests/test_detector.py, line ")


@pytest.mark.parametrize("watched_from", ["a coroutine", "bridged code"])
def test_the_caller_itself(runner: asyncio.Runner, warnings: Warnings, watched_from: str) -> None:
    """What blocks before the loop has turned once since `watch` is named."""

    def work() -> None:
        detector.watch(BOUND)
        report()

    async def main() -> None:
        if watched_from == "a coroutine":
            work()
        else:
            await bridged(work)()
        await warnings.wait_for(1)

    runner.run(main())
    assert warnings.texts[0].startswith(place(report))


@pytest.mark.parametrize("how", ["bridged", "called"])
def test_library_called_by_the_application(
    runner: asyncio.Runner, warnings: Warnings, how: str
) -> None:
    """The application's function is named, and the library's function it is in."""

    async def main() -> None:
        detector.watch(BOUND)
        await asyncio.sleep(0.01)
        if how == "bridged":
            await bridged(wait_in_library)()
        else:
            wait_in_library()
        await warnings.wait_for(1)

    runner.run(main())
    assert warnings.texts[0].startswith(f"{place(wait_in_library)} has held the event loop for 0.")
    assert " s, in threading.Condition.wait (threading.py, line " in warnings.texts[0]


def test_library_only(runner: asyncio.Runner, warnings: Warnings) -> None:
    """Where no function of the application runs, the innermost one is named.

    The caller of the loop is not: it holds nothing.
    """

    async def main() -> None:
        detector.watch(BOUND)
        asyncio.get_running_loop().call_later(0.01, threading.Event().wait, HELD)
        await warnings.wait_for(1)

    runner.run(main())
    assert warnings.texts[0].startswith("threading.Condition.wait (threading.py, line ")
    assert __name__ not in warnings.texts[0]


async def test_callback_in_c(warnings: Warnings) -> None:
    """Where asyncio calls back a function in C, that is named."""
    detector.watch(BOUND)
    asyncio.get_running_loop().call_later(0.01, time.sleep, HELD)
    await warnings.wait_for(1)
    assert warnings.texts[0].startswith("time.sleep, called by the event loop, has held the")


def test_import(
    runner: asyncio.Runner, warnings: Warnings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a first request imports, its URLconf for one, is not named."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "slow_urls.py").write_text(f"import time\ntime.sleep({HELD})\n")

    def resolve() -> None:
        import_module("slow_urls")

    async def main() -> None:
        detector.watch(BOUND)
        await bridged(resolve)()
        await asyncio.sleep(BOUND)
        await warnings.check_none_before(mark)

    runner.run(main())
    del sys.modules["slow_urls"]


def take_name(folder: Path) -> None:
    """Take a name that a package makes when it is asked for it."""
    (folder / "slow_names").mkdir()
    (folder / "slow_names" / "__init__.py").write_text(
        "import time\n"
        "def __getattr__(name):\n"
        "    if name != 'late': raise AttributeError(name)\n"
        f"    globals()[name] = time.sleep({HELD})\n"
    )
    import_module("slow_names")
    from slow_names import late  # noqa: F401

    del sys.modules["slow_names"]


def read_source(folder: Path) -> None:
    """Load a module by its loader; the file that it is read from answers late."""
    path = folder / "slow_source.py"
    os.mkfifo(path)

    def write() -> None:
        with path.open("w") as file:
            time.sleep(HELD)
            file.write("name = 1")

    writer = threading.Thread(target=write)
    writer.start()
    spec = spec_from_file_location("slow_source", path)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(module_from_spec(spec))
    writer.join()


@pytest.mark.parametrize("load", [take_name, read_source])
def test_parts_of_an_import(
    runner: asyncio.Runner,
    warnings: Warnings,
    load: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nor are the parts of an import in which no module is looked for."""
    monkeypatch.syspath_prepend(str(tmp_path))

    async def main() -> None:
        detector.watch(BOUND)
        await bridged(load)(tmp_path)
        await asyncio.sleep(BOUND)
        await warnings.check_none_before(mark)

    runner.run(main())


@pytest.mark.parametrize("how", ["called back", "in a task"])
def test_internals_of_the_loop(runner: asyncio.Runner, warnings: Warnings, how: str) -> None:
    """The event loop's own code, where it calls nobody else's, is not named."""
    scope: dict[str, Any] = {"__name__": "asyncio.internal", "time": time}
    exec(f"def hold(): time.sleep({HELD})\nasync def run(): hold()", scope)

    async def main() -> None:
        detector.watch(BOUND)
        if how == "called back":
            asyncio.get_running_loop().call_later(0.01, scope["hold"])
        else:
            await asyncio.create_task(scope["run"]())
        await asyncio.sleep(HELD + BOUND)
        await warnings.check_none_before(mark)

    runner.run(main())


def test_internals_called_by_the_application(runner: asyncio.Runner, warnings: Warnings) -> None:
    """An application's function is named without the internals that it calls."""
    scope: dict[str, Any] = {"__name__": "asyncio.internal", "time": time}
    exec(f"def hold(): time.sleep({HELD})", scope)

    def call() -> None:
        scope["hold"]()

    async def main() -> None:
        detector.watch(BOUND)
        await bridged(call)()
        await warnings.wait_for(1)

    runner.run(main())
    assert warnings.texts[0].startswith(f"{place(call)} has held the event loop for ")
    assert "asyncio.internal" not in warnings.texts[0]


def seconds(text: str) -> float:
    """Return how long a warning says that the loop was held."""
    return float(text.partition(" for ")[2].partition(" s")[0])


@pytest.mark.parametrize("held", [HELD, LONG])
def test_duration(runner: asyncio.Runner, warnings: Warnings, held: float) -> None:
    """A warning says how long the loop was held, not how long it takes to notice that."""
    took = 0.0

    def block() -> None:
        nonlocal took
        before = time.monotonic()
        time.sleep(held)
        took = time.monotonic() - before

    async def main() -> None:
        detector.watch(BOUND)
        await asyncio.sleep(BOUND)
        await bridged(block)()
        await warnings.wait_for(1)

    runner.run(main())
    assert abs(seconds(warnings.texts[0]) - took) < 0.3


def test_held_for_very_long(
    runner: asyncio.Runner, warnings: Warnings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What holds the loop for very long is named while it does, and again with the whole time."""
    monkeypatch.setattr(detector, "STILL_SECONDS", HELD)

    def block() -> None:
        until = time.monotonic() + 10
        while not warnings.texts and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(HELD)

    async def main() -> None:
        detector.watch(BOUND)
        await bridged(block)()
        await warnings.wait_for(2)

    runner.run(main())
    first, second = warnings.texts
    assert " s and still does" in first
    assert "still does" not in second
    assert seconds(second) > seconds(first) + HELD / 2


def test_where_it_mostly_was(runner: asyncio.Runner, warnings: Warnings) -> None:
    """Of what holds the loop in several places one after the other, the longest is named."""

    def first() -> None:
        time.sleep(2 * BOUND)

    def both() -> None:
        first()
        report()

    async def main() -> None:
        detector.watch(BOUND)
        await bridged(both)()
        await warnings.wait_for(1)

    runner.run(main())
    assert warnings.texts[0].startswith(place(report))


def test_holding_the_gil(runner: asyncio.Runner, warnings: Warnings) -> None:
    """C code that holds the GIL the whole time is named when it returns."""
    usleep = ctypes.PyDLL(None).usleep

    def hold_gil() -> None:
        usleep(int(HELD * 1e6))

    async def main() -> None:
        detector.watch(BOUND)
        # Where other processes take the processor at that moment, the thread may come too late.
        for _ in range(10):
            await asyncio.sleep(0.01)
            hold_gil()
            if warnings.texts:
                break
        await warnings.wait_for(1)

    runner.run(main())
    assert warnings.texts[0].startswith(place(hold_gil))


def test_loops_of_two_threads(warnings: Warnings) -> None:
    """Each loop is watched by itself, in whichever thread it runs."""

    async def watch_and(call: Callable[[], None]) -> None:
        detector.watch(BOUND)
        await asyncio.sleep(0.01)
        call()
        await warnings.wait_for(2)

    other = threading.Thread(target=asyncio.run, args=(watch_and(report),))
    other.start()
    asyncio.run(watch_and(wait_in_library))
    other.join()
    named = {text.partition(" has held")[0] for text in warnings.texts}
    assert named == {place(report), place(wait_in_library)}


def test_loop_run_again_in_another_thread(runner: asyncio.Runner, warnings: Warnings) -> None:
    """A loop that goes on in another thread is looked at there."""

    async def main(call: Callable[[], object]) -> None:
        detector.watch(BOUND)
        # The heartbeat comes within half of that.
        await asyncio.sleep(BOUND)
        call()

    runner.run(main(int))
    other = threading.Thread(target=runner.run, args=(main(report),))
    other.start()
    other.join()
    runner.run(warnings.wait_for(1))
    assert warnings.texts[0].startswith(place(report))


# What is not


def test_waiting_for_the_database(runner: asyncio.Runner, warnings: Warnings) -> None:
    """A bridged function that waits for the database longer than the bound is not named."""

    def wait() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_sleep(%s)", [LONG])

    async def main() -> None:
        # Imports, and the pool's first connection, are not what is looked at.
        await bridged(connection.ensure_connection)()
        detector.watch(WIDE)
        await bridged(wait)()
        await warnings.check_none_before(mark)

    runner.run(main())


def test_idle_loop(runner: asyncio.Runner, warnings: Warnings) -> None:
    """A loop that has nothing to do is not held."""

    async def main() -> None:
        detector.watch(WIDE)
        await asyncio.sleep(LONG)
        await warnings.check_none_before(mark)

    runner.run(main())


def test_stopped_loop(runner: asyncio.Runner, warnings: Warnings) -> None:
    """A loop that is stopped for a while, and then run again, is not held."""

    async def watch() -> None:
        detector.watch(WIDE)

    runner.run(watch())
    time.sleep(LONG)
    runner.run(warnings.check_none_before(mark))


def test_many_short_callbacks(runner: asyncio.Runner, warnings: Warnings) -> None:
    """Of many tasks that hold the loop together, but each only for a moment, none is named."""

    async def work() -> None:
        time.sleep(0.01)  # noqa: ASYNC251  # a step that takes its time

    async def main() -> None:
        detector.watch(WIDE)
        await asyncio.sleep(0.01)
        await asyncio.gather(*(work() for _ in range(200)))
        await warnings.check_none_before(mark)

    runner.run(main())


@pytest.mark.process
@pytest.mark.parametrize("name", EACH_NAME)
def test_suspended_process(name: str) -> None:
    """A process that is suspended while its loop is idle gives no warning when it goes on."""
    pytest.importorskip(name, reason="uvloop is not installed")
    source = f"""
        settings.configure(**conf)
        import {name}, logging, time
        from pgbackend import detector

        logging.basicConfig(stream=sys.stdout, format="%(message)s")

        def mark():
            time.sleep({LONG})

        def stand_by():
            # Until the loop waits for this thread.
            time.sleep({BOUND})
            print("ready", flush=True)
            sys.stdin.readline()

        async def main():
            detector.watch({WIDE})
            await asyncio.to_thread(stand_by)
            # A turn of the loop after the one in which it went on.
            await asyncio.sleep({LONG})
            mark()

        with asyncio.Runner(loop_factory={name}.new_event_loop) as runner:
            runner.run(main())
    """
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROLOGUE + textwrap.dedent(source)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        time.sleep(LONG)
        process.send_signal(signal.SIGCONT)
        printed, _ = process.communicate("\n", timeout=PATIENCE)
    assert process.returncode == 0
    assert [line.partition(" ")[0] for line in printed.splitlines()] == ["__main__.mark"]


# How often


def test_one_warning_for_each_blockage(runner: asyncio.Runner, warnings: Warnings) -> None:
    """However long it lasts, a blockage is told once; the next one of the same function again."""

    def first_or_second(second: bool) -> None:
        if not second:
            time.sleep(HELD)
        else:
            time.sleep(HELD)

    async def main() -> None:
        detector.watch(BOUND)
        for second in (False, True):
            await asyncio.sleep(0.01)
            first_or_second(second)
        await asyncio.sleep(BOUND)
        await warnings.wait_for(2)

    runner.run(main())
    line = first_or_second.__code__.co_firstlineno
    lines = [text.partition("line ")[2].partition(")")[0] for text in warnings.texts]
    assert lines == [str(line + 2), str(line + 4)]


def test_repeated_line(warnings: Warnings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line is named once in a while, then with the number of blockages not told."""

    async def block() -> None:
        report()
        # So that the next one is another blockage.
        await asyncio.sleep(BOUND)

    async def main() -> None:
        detector.watch(BOUND)
        for _ in range(3):
            await block()
        assert len(warnings.texts) == 1
        monkeypatch.setattr(detector, "REPEAT_SECONDS", HELD)
        for count in (2, 3):
            await asyncio.sleep(HELD)
            await block()
            await warnings.wait_for(count)

    asyncio.run(main())
    told = [" s, and 2 times more since it was last named: it " in text for text in warnings.texts]
    assert told == [False, True, False]
    assert "times more" not in warnings.texts[2]


def test_watched_once(runner: asyncio.Runner, warnings: Warnings) -> None:
    """Watching a loop again changes nothing."""

    async def main() -> None:
        # Those of the tests before may be about to end.
        before = set(detectors())
        for seconds in (BOUND, BOUND, 60.0):
            detector.watch(seconds)
            await asyncio.sleep(0)
        assert len(set(detectors()) - before) == 1
        report()
        await warnings.wait_for(1)

    runner.run(main())


def test_context_of_the_first_request(runner: asyncio.Runner) -> None:
    """The context in which a loop was first watched is not kept."""

    class Tenant:
        pass

    tenant: ContextVar[Tenant] = ContextVar("tenant")

    async def request() -> weakref.ref[Tenant]:
        tenant.set(Tenant())
        detector.watch(BOUND)
        return weakref.ref(tenant.get())

    async def main() -> None:
        kept = await asyncio.create_task(request())
        await asyncio.sleep(BOUND)
        gc.collect()
        assert kept() is None

    runner.run(main())


def test_misuse() -> None:
    """Without a running loop, or without a time above 0, nothing is watched."""
    with pytest.raises(RuntimeError, match="no running event loop"):
        detector.watch(BOUND)

    async def watch_nothing() -> None:
        with pytest.raises(ValueError, match="above 0, not 0"):
            detector.watch(0)

    asyncio.run(watch_nothing())


# Its end


@pytest.mark.process
@pytest.mark.parametrize("name", EACH_NAME)
def test_end_of_the_loop(name: str) -> None:
    """Closing the loop ends the thread, with no complaint, and nothing keeps the loop."""
    pytest.importorskip(name, reason="uvloop is not installed")
    printed = run_script(
        f"""
        settings.configure(**conf)
        import gc, {name}, weakref
        from pgbackend import detector

        def threads():
            return [each for each in threading.enumerate() if each.name == "pgbackend-detector"]

        async def main():
            # The thread would not look for a long time: it is told.
            detector.watch(60.0)
            await asyncio.sleep(0.01)

        for debug in (False, True):
            with asyncio.Runner(debug=debug, loop_factory={name}.new_event_loop) as runner:
                runner.run(main())
                loop = weakref.ref(runner.get_loop())
                thread, = threads()
                assert thread.daemon
            thread.join()
            print(threads())
            del runner
            gc.collect()
            print(loop())
        """
    )
    assert printed.splitlines() == ["[]", "None"] * 2


def test_loop_closed_before_its_first_turn(runner: asyncio.Runner) -> None:
    """A loop that ends right after `watch` ends the thread, too."""
    before = detectors()

    async def main() -> None:
        detector.watch(60.0)

    runner.run(main())
    (thread,) = set(detectors()) - set(before)
    runner.close()
    thread.join(PATIENCE)
    assert not thread.is_alive()


@pytest.mark.process
def test_exit_with_the_loop_running() -> None:
    """The process ends while a watched loop still runs, and is held, in a thread."""
    printed = run_script(
        f"""
        settings.configure(**conf)
        import logging, time
        from pgbackend import detector

        warned = threading.Event()
        handler = logging.Handler()
        handler.emit = lambda record: warned.set()
        detector.logger.addHandler(handler)

        async def main():
            detector.watch({BOUND})
            await asyncio.sleep(0.01)
            time.sleep(3600)

        threading.Thread(target=asyncio.run, args=(main(),), daemon=True).start()
        print(warned.wait())
        """
    )
    assert printed == "True\n"


@pytest.mark.process
@pytest.mark.parametrize("name", EACH_NAME)
def test_fork(name: str) -> None:
    """A forked child is left alone, and watches loops anew: its own, or one it inherited."""
    pytest.importorskip(name, reason="uvloop is not installed")
    printed = run_script(
        f"""
        settings.configure(**conf)
        import logging, os, time, warnings
        import {name}
        from pgbackend import bridged, detector
        from pgbackend.bridge.greenlets import run_bridged

        # Python 3.12 and later say that a process with threads forks.
        warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork")
        logging.basicConfig(stream=sys.stdout, format="%(message)s")

        def report():
            time.sleep({HELD})

        async def block():
            detector.watch({BOUND})
            await asyncio.sleep(0.01)
            await run_bridged(report)

        def run(runner):
            print([each.name for each in threading.enumerate()])
            runner.run(block())
            print([each.name for each in threading.enumerate()])
            sys.stdout.flush()
            os._exit(0)

        def wait_for(child):
            _, status = os.waitpid(child, 0)
            print(os.waitstatus_to_exitcode(status), flush=True)

        def new_runner():
            return asyncio.Runner(loop_factory={name}.new_event_loop)

        def fork_while_running():
            if (child := os.fork()) == 0:
                run(new_runner())
            wait_for(child)

        async def main():
            # The parent waits for its child here, and is not to be named for that.
            detector.watch(60.0)
            await run_bridged(fork_while_running)

        with new_runner() as runner:
            runner.run(main())
            if (child := os.fork()) == 0:
                run(runner)
            wait_for(child)
            print([each.name for each in threading.enumerate()])
        """
    )
    lines = [line.partition(" (")[0] for line in printed.splitlines()]
    threads = "['MainThread', 'pgbackend-detector']"
    assert lines == ["['MainThread']", "__main__.report", threads, "0"] * 2 + [threads]
