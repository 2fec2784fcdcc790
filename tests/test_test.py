"""The test runner: a project's tests, in processes of their own, with it and without."""

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sample_project.runs import drop_leftovers, interrupt, leftovers, run

pytestmark = pytest.mark.process


@pytest.fixture(autouse=True)
def no_databases() -> Iterator[None]:
    """No run finds the databases of another."""
    yield
    drop_leftovers()


def run_tests(*arguments: str, **variables: str) -> tuple[int, str]:
    """Run ``manage.py test`` and return its exit status and output."""
    status, output = run("manage.py", "test", "--noinput", *arguments, **variables)
    assert leftovers() == [], output
    return status, output


def check_passed(ended: tuple[int, str], count: int) -> None:
    """Check that so many tests ran and passed, without a complaint."""
    status, output = ended
    assert status == 0, output
    assert f"Ran {count} test" in output, output
    assert "\nOK\n" in output, output
    for complaint in ("Warning", "ignored", "never", "Traceback"):
        assert complaint not in output, output


LITE = "sample.cases.lite"
ONE_LOOP = "sample.cases.bridged.OneLoopTests"
COMMON, BRIDGED, ISOLATED = "sample.cases.common", "sample.cases.bridged", "sample.cases.isolated"


def test_bridged() -> None:
    """Tests of every kind run on one loop, in one transaction where Django has one."""
    check_passed(run_tests(COMMON, BRIDGED, ISOLATED), 8 + 25 + 2)


@pytest.mark.parametrize("name", [":memory:", pytest.param("lite.sqlite3", marks=pytest.mark.load)])
@pytest.mark.parametrize(
    "arguments",
    [
        [],
        *[
            pytest.param(each, marks=pytest.mark.load)
            for each in (["--parallel", "2"], ["--reverse"])
        ],
    ],
)
def test_an_alias_of_another_engine(tmp_path: Path, name: str, arguments: list[str]) -> None:
    """A run with an alias of another engine starts, and that alias works in place."""
    database = name if name == ":memory:" else str(tmp_path / name)
    check_passed(run_tests(*arguments, LITE, SAMPLE_LITE=database), 8)


@pytest.mark.load
@pytest.mark.parametrize("order", [["--shuffle", "1"], ["--reverse"]])
def test_order(order: list[str]) -> None:
    """No test leaves anything to the next one."""
    check_passed(run_tests(COMMON, BRIDGED, ISOLATED, *order), 8 + 25 + 2)


def test_parallel() -> None:
    """Worker processes run their tests bridged, each on one loop."""
    check_passed(run_tests("--parallel", "2", COMMON, BRIDGED), 8 + 25)


SPAWN = """
import multiprocessing, sys
from django.core.management import execute_from_command_line

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    execute_from_command_line(["manage.py", *sys.argv[1:]])
"""


@pytest.mark.load
def test_spawned(tmp_path: Path) -> None:
    """So do worker processes that were not forked."""
    script = tmp_path / "spawn.py"
    script.write_text(SPAWN)
    ended = run(str(script), "test", "--noinput", "--parallel", "2", COMMON, BRIDGED)
    check_passed(ended, 8 + 25)


# Django cannot send the failure of an asynchronous test's subtest to another process.
@pytest.mark.parametrize(("parallel", "subtests"), [("1", "FAIL"), ("2", "ERROR")])
def test_failures(parallel: str, subtests: str) -> None:
    """Tests that fail are told, one by one, and keep no other from passing."""
    status, output = run_tests("sample.cases.failing", "--parallel", parallel)
    assert status == 1, output
    assert "Ran 8 tests" in output
    assert sorted(re.findall(r"^(FAIL|ERROR): test_(\w+)", output, re.MULTILINE)) == sorted(
        [
            ("FAIL", "sync"),
            ("FAIL", "async"),
            (subtests, "subtests"),
            ("ERROR", "error"),
            ("ERROR", "a_cancelled"),
        ]
    )


def test_failfast() -> None:
    """A run that Django stops early ends as ever."""
    status, output = run_tests("sample.cases.failing", "--failfast")
    assert status == 1, output
    assert "Ran 1 test " in output


# Without the bridge


@pytest.mark.parametrize(
    ("arguments", "bridge"),
    [
        pytest.param(["--no-bridge"], "on", id="switched off"),
        pytest.param(
            ["--no-bridge", "--parallel", "2"],
            "on",
            id="switched off, parallel",
            marks=pytest.mark.load,
        ),
        pytest.param([], "off", id="no database has it", marks=pytest.mark.load),
        pytest.param(["--testrunner", "django.test.runner.DiscoverRunner"], "on", id="Django's"),
    ],
)
def test_without(arguments: list[str], bridge: str) -> None:
    """Without the bridge asynchronous tests see the transaction of their TestCase, too."""
    status, output = run_tests(COMMON, ONE_LOOP, *arguments, SAMPLE_BRIDGE=bridge)
    assert status == 1, output
    # Those of ONE_LOOP alone, which find no loop.
    assert re.findall(r"^(?:FAIL|ERROR): .*", output, re.MULTILINE) == [
        f"ERROR: setUpClass ({ONE_LOOP})"
    ], output
    assert "Ran 8 tests" in output, output


# Called from a loop

CALL = """
import asyncio, django
from django.core.management import call_command
from pgbackend import bridged

def test():
    call_command("test", "sample.cases.common", interactive=False)

django.setup()
"""


def test_from_a_running_loop() -> None:
    """On a running loop the runner raises an error that says what to do."""
    status, output = run("-c", CALL + "async def main(): test()\nasyncio.run(main())")
    assert status == 1
    assert "RuntimeError: tests cannot be run in the bridge from a running event loop" in output
    assert "pgbackend.bridged" in output
    assert "--no-bridge" in output


def test_from_the_bridge() -> None:
    """Bridged already, the runner runs the tests on the loop there is."""
    check_passed(run("-c", CALL + "asyncio.run(bridged(test)())"), 8)


# Ctrl-C


def interrupt_tests(name: str) -> tuple[int, str]:
    """Run a test of sample.cases.interrupted, and all of them after it; interrupt it."""
    test = f"sample.cases.interrupted.InterruptedTests.test_{name}"
    command = ["manage.py", "test", "--noinput", test, "sample.cases.interrupted"]
    status, output = interrupt(*command, at=("ready", "waiting"))
    assert leftovers() == [], output
    assert "the next test" not in output
    return status, output


def test_first_interruption() -> None:
    """The first Ctrl-C ends the run after the test, as with Django's."""
    check_passed(interrupt_tests("without_waiting"), 1)


@pytest.mark.parametrize(
    "name",
    [
        "in_the_server",
        *[
            pytest.param(name, marks=pytest.mark.load)
            for name in ("in_python", "on_the_loop", "in_a_task", "in_a_loop_of_its_own")
        ],
    ],
)
def test_second_interruption(name: str) -> None:
    """The second Ctrl-C ends the run at once, with the databases removed, as with Django's."""
    status, output = interrupt_tests(name)
    assert status == -signal.SIGINT, output
    assert output.rstrip().endswith("KeyboardInterrupt"), output
    assert "CancelledError" not in output.partition("KeyboardInterrupt")[0]
