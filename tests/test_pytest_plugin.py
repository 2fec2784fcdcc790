"""The pytest plugin: runs of pytest on the sample project, in processes of their own."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.sample_project.runs import drop_leftovers, interrupt, leftovers, run

pytestmark = pytest.mark.process

# The plugins, and no others that happen to be installed; ours by its name, as the entry point
# would. It is loaded before pytest-django, which sets Django up.
PLUGINS = ("pgbackend.pytest_plugin", "pytest_django.plugin")
ASYNCIO, ANYIO = ("pytest_asyncio.plugin",), ("anyio.pytest_plugin",)

# What the tests' own pytest has set in the environment.
VARIABLES = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}


@pytest.fixture(autouse=True)
def no_databases() -> Iterator[None]:
    """No run finds the databases of another."""
    yield
    drop_leftovers()


def arguments(*modules: str, plugins: tuple[str, ...] = ()) -> list[str]:
    """Return the arguments of a run of pytest on modules of sample.cases."""
    loaded = [argument for plugin in PLUGINS + plugins for argument in ("-p", plugin)]
    if plugins[:1] == ASYNCIO:
        # It warns of a configuration without.
        loaded += ["-o", "asyncio_default_fixture_loop_scope=function"]
    files = [f"sample/cases/{module}.py" for module in modules]
    return ["-m", "pytest", "-p", "no:cacheprovider", "-rA", *loaded, *files]


def run_pytest(
    *modules: str, plugins: tuple[str, ...] = (), options: tuple[str, ...] = ()
) -> tuple[int, str]:
    """Run pytest and return its exit status and output."""
    status, output = run(*arguments(*modules, plugins=plugins), *options, **VARIABLES)
    assert leftovers() == [], output
    return status, output


def check_passed(ended: tuple[int, str], count: int) -> None:
    """Check that so many tests ran and passed, without a warning."""
    status, output = ended
    assert status == 0, output
    assert re.search(rf"=== {count} passed in ", output), output
    for complaint in ("ignored", "never awaited", "destroyed"):
        assert complaint not in output, output


@pytest.fixture(scope="module")
def usual() -> tuple[int, str]:
    """A run of tests of every kind."""
    return run_pytest("in_pytest", "common", "bridged", "isolated")


def passed(output: str, *modules: str) -> int:
    """Return how many tests of modules of sample.cases have passed, by the summary."""
    return sum(output.count(f"PASSED sample/cases/{module}.py::") for module in modules)


def test_all_kinds(usual: tuple[int, str]) -> None:
    """Functions and Django's test cases run beside each other, in one session."""
    check_passed(usual, 20 + 8 + 25 + 2)


def test_functions(usual: tuple[int, str]) -> None:
    """Functions, methods and fixtures of both kinds run in the bridge, with pytest-django's."""
    assert passed(usual[1], "in_pytest") == 20, usual[1]


@pytest.mark.load
def test_an_alias_of_another_engine(tmp_path: Path) -> None:
    """A run with an alias of another engine starts, and that alias works in place."""
    status, output = run(
        *arguments("lite"), **VARIABLES, SAMPLE_LITE=str(tmp_path / "lite.sqlite3")
    )
    check_passed((status, output), 8)


def test_django_classes(usual: tuple[int, str]) -> None:
    """Django's test cases run in the bridge as with Django's runner."""
    assert passed(usual[1], "common", "bridged", "isolated") == 8 + 25 + 2, usual[1]


def test_workers() -> None:
    """The worker processes of pytest-xdist run their tests bridged."""
    xdist = ("xdist.plugin", "xdist.looponfail")
    ended = run_pytest("in_pytest", "bridged", plugins=xdist, options=("-n", "2"))
    check_passed(ended, 20 + 25)
    assert "2 workers" in ended[1]


# Beside other plugins


@pytest.mark.load
def test_pytest_asyncio() -> None:
    """Tests of pytest-asyncio's run on its loops, in the transaction of their fixtures."""
    check_passed(run_pytest("in_pytest_asyncio", "in_pytest", plugins=ASYNCIO), 8 + 20)


@pytest.mark.load
def test_pytest_asyncio_in_automatic_mode() -> None:
    """In pytest-asyncio's automatic mode all asynchronous tests are its own, and pass."""
    options = ("--asyncio-mode", "auto")
    ended = run_pytest(
        "in_pytest_asyncio_auto", "in_pytest_asyncio", plugins=ASYNCIO, options=options
    )
    check_passed(ended, 2 + 8)


@pytest.mark.load
def test_anyio() -> None:
    """Tests of anyio's run on its loops, in the transaction of their fixtures."""
    ended = run_pytest("in_anyio", "in_pytest_beside_anyio", "in_pytest", plugins=ANYIO)
    check_passed(ended, 4 + 4 + 20)


def test_all_plugins() -> None:
    """All of them together change nothing."""
    ended = run_pytest("in_pytest", "in_pytest_asyncio", "in_anyio", plugins=ASYNCIO + ANYIO)
    check_passed(ended, 20 + 8 + 4)


# Failures


def outcomes(output: str) -> set[tuple[str, str]]:
    """Return what the summary says of each test that did not pass."""
    return set(re.findall(r"^(FAILED|ERROR|SKIPPED|XFAIL) .*?(?:::(\w+)|not today)", output, re.M))


def test_failures() -> None:
    """Tests and fixtures that fail are told, one by one, and keep no other from passing."""
    status, output = run_pytest("failing_in_pytest")
    assert status == 1, output
    assert outcomes(output) == {
        ("FAILED", "test_fails"),
        ("FAILED", "test_cancels_itself"),
        ("ERROR", "test_fixture"),
        ("ERROR", "test_fixture_at_the_end"),
        ("ERROR", "test_fixture_that_yields_twice"),
        ("XFAIL", "test_fails_as_expected"),
        ("SKIPPED", ""),
    }
    assert "PASSED sample/cases/failing_in_pytest.py::test_passes" in output
    assert "yields_twice yields twice" in output


@pytest.mark.load
def test_failures_in_django_classes() -> None:
    """So are those of Django's test cases."""
    status, output = run_pytest("failing")
    assert status == 1, output
    assert "5 failed, 4 passed" in output


@pytest.mark.load
def test_first_failure() -> None:
    """A run that stops at the first failure tears its fixtures down in the bridge."""
    status, output = run_pytest("failing_in_pytest", options=("-x",))
    assert status == 1, output
    assert "stopping after 1 failures" in output
    assert outcomes(output) == {("FAILED", "test_fails")}


WAITING = [
    "in_the_server",
    "in_python",
    "on_the_loop",
    "in_a_task",
    "in_a_loop_of_its_own",
    "in_a_loop_of_pytest_asyncio",
]


@pytest.mark.parametrize(
    "name",
    [*WAITING[:2], *[pytest.param(name, marks=pytest.mark.load) for name in WAITING[2:]]],
)
def test_interrupted(name: str) -> None:
    """Ctrl-C ends the session as usual, with the fixtures torn down and the databases removed."""
    command = arguments("interrupted_in_pytest", plugins=ASYNCIO)
    options = ("-s", "-k", f"{name} or next")
    status, output = interrupt(*command, *options, at=("waiting",), **VARIABLES)
    assert status == pytest.ExitCode.INTERRUPTED, output
    assert "!!! KeyboardInterrupt !!!" in output
    assert "the test is torn down bridged" in output
    assert "the module is torn down bridged" in output
    assert "the next test" not in output
    assert "CancelledError" not in output
    assert leftovers() == []


# Not "in_the_server": for such a failure psycopg does not stop the statement, whose transaction
# is then in the way. So it is without the bridge.
TIMED_OUT = WAITING[1:]


@pytest.fixture(scope="module")
def timed_out() -> str:
    """The output of a run in which pytest-timeout ends one test after the other."""
    # Its fixtures, the databases among them, have their time.
    limits = ("--timeout", "1", "-o", "timeout_func_only=true")
    status, output = run_pytest(
        "interrupted_in_pytest",
        plugins=(*ASYNCIO, "pytest_timeout"),
        options=(*limits, "-k", " or ".join([*TIMED_OUT, "next"])),
    )
    assert status == 1, output
    return output


@pytest.mark.parametrize("name", TIMED_OUT)
def test_time_out(name: str, timed_out: str) -> None:
    """A test that pytest-timeout ends has failed, wherever it waited, and the next one runs."""
    _, *sections = re.split(r"^_+ (\w+) _+$", timed_out, flags=re.MULTILINE)
    of_test = dict(zip(sections[::2], sections[1::2], strict=True))[f"test_{name}"]
    assert "Failed: Timeout (>1.0s) from pytest-timeout" in of_test, timed_out


def test_after_the_time_outs(timed_out: str) -> None:
    """What comes after them passes, bridged."""
    assert f"{len(TIMED_OUT)} failed, 1 passed" in timed_out, timed_out


# Switched off


def test_off_by_default(tmp_path: Path) -> None:
    """Unless it is asked for, the plugin changes nothing, and needs no settings."""
    (tmp_path / "test_it.py").write_text(
        "import asyncio, sys\n"
        "def test_it():\n"
        "    assert asyncio._get_running_loop() is None\n"
        "    assert 'pgbackend.test' not in sys.modules\n"
    )
    (tmp_path / "pytest.ini").touch()
    command = ["-m", "pytest", "-p", "pgbackend.pytest_plugin", "-p", "no:cacheprovider"]
    status, output = run(*command, str(tmp_path), DJANGO_SETTINGS_MODULE="", **VARIABLES)
    assert status == 0, output


@pytest.mark.parametrize(
    ("options", "bridge"),
    [
        pytest.param(("--no-pgbackend",), "on", id="for one run"),
        pytest.param(
            ("-o", "pgbackend_bridge=false"), "on", id="by the ini file", marks=pytest.mark.load
        ),
        pytest.param((), "off", id="no database has it", marks=pytest.mark.load),
    ],
)
def test_off(options: tuple[str, ...], bridge: str) -> None:
    """Without the bridge tests run as ever, Django's asynchronous ones too."""
    command = [*arguments("common", "in_pytest"), *options, "-k", "common or no_database"]
    status, output = run(*command, SAMPLE_BRIDGE=bridge, **VARIABLES)
    assert status == 1, output
    assert output.count("PASSED sample/cases/common.py") == 8, output
    assert "PASSED sample/cases/in_pytest.py" not in output
    assert "no running event loop" in output


def test_on_for_one_run() -> None:
    """--pgbackend switches it on where the ini file does not."""
    options = ("-o", "pgbackend_bridge=false", "--pgbackend")
    check_passed(run_pytest("in_pytest", options=options), 20)


def test_without_settings(tmp_path: Path) -> None:
    """Switched on without settings, it says so."""
    (tmp_path / "test_it.py").write_text("def test_it(): pass\n")
    (tmp_path / "pytest.ini").touch()
    command = ["-m", "pytest", "-p", "pgbackend.pytest_plugin", "-p", "no:cacheprovider"]
    status, output = run(
        *command, "--pgbackend", str(tmp_path), DJANGO_SETTINGS_MODULE="", **VARIABLES
    )
    assert status == pytest.ExitCode.USAGE_ERROR, output
    assert "set DJANGO_SETTINGS_MODULE, or switch it off by --no-pgbackend" in output
