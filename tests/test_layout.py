"""The layout of the tests: a file for each module; what they share is in `tests/support`."""

import ast
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from proj import postgres
from tests.django_suite.server import THROWAWAY, in_memory, make_logins_cheap
from tests.support.limits import PATIENCE
from tests.support.server import Server

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "pgbackend"
FILES = sorted(TESTS.rglob("*.py"))

# Modules without a test file of their name.
WITHOUT = {
    "client.py": "re-exports Django's; test_package.py imports it",
    "connection.py": "re-exports; test_package.py imports it",
    "introspection.py": "re-exports Django's; test_package.py imports it",
    "known_sources.py": "a table, which test_fingerprints.py looks at",
    "lazy.py": "names of the packages; test_package.py imports them",
    "registry.py": "re-exports; test_package.py imports it",
    "schema.py": "re-exports Django's; test_package.py imports it",
    "version.py": "one line; the build reads it",
}

# Test files that are about more than a module.
OTHERS = {
    "futures/test_generated.py": "what all of futures does, with generated querysets",
    "futures/test_programs.py": "what all of futures does, while connections are killed",
    "status/test_browser.py": "the page of status in a browser",
    "sql/test_counts.py": "what one aget does, counted through all modules",
    "tasks/test_left_early.py": "cursors left early, in every way and place",
    "test_app_suite.py": "a tool: tests/app_suite",
    "test_differential.py": "a tool: tests/differential",
    "test_kitchen.py": "the example project: kitchen/ and proj/",
    "test_kitchen_browser.py": "the example project in a browser",
    "test_layout.py": "the tests themselves",
    "test_loop.py": "what all modules together do to the event loop",
    "test_package.py": "the package as it is imported",
    "test_pages.py": "the pages: docs/",
    "test_private_names.py": "the private names of other packages, in all modules",
    "test_startproject.py": "a project that `startproject` made",
    "test_types.py": "what type checkers see of all modules",
    "test_waiter.py": "the example project's second site: proj/waiter/",
    "test_without_asgi.py": "projects under WSGI and Celery",
}

# Folders of tests by subject.
SUBJECTS = {
    "faults": "what networks, servers and clients do",
    "instrumentation": "what looks at statements",
    "pages": "the examples of the pages",
    "pubsub": "by subject until it is whole",
    "rpc": "by subject: what travels is tested from both its ends",
}


def imported(file: Path) -> set[str]:
    """Return the names of the modules that *file* imports or names in a string."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.Import():
                found |= {alias.name for alias in node.names}
            case ast.ImportFrom(module=str(module)):
                found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
            case ast.Constant(value=str(text)):
                # Scripts that run in processes of their own.
                lines = [line.split() for line in text.splitlines()]
                found |= {
                    words[1] for words in lines if words[:1] in (["from"], ["import"]) and words[1:]
                }
    return found


def test_no_test_is_imported() -> None:
    """No file imports a test or a conftest."""
    wrong = [
        f"{file.relative_to(TESTS)}: {name}"
        for file in FILES
        for name in sorted(imported(file))
        if name.startswith("tests.")
        and any(part.startswith("test_") or part == "conftest" for part in name.split("."))
    ]
    assert wrong == []


def of_no_subject(path: Path) -> bool:
    return path.parts[0] not in SUBJECTS


def modules() -> set[str]:
    """Return the modules of the package, by their paths in it; no packages, no subjects."""
    found = [each.relative_to(PACKAGE) for each in PACKAGE.rglob("*.py")]
    return {str(each) for each in found if of_no_subject(each) and each.name != "__init__.py"}


def modules_of_tests() -> dict[str, str]:
    """Return for each test file, no subject's, the module that it is named after."""
    found = [each.relative_to(TESTS) for each in TESTS.rglob("test_*.py")]
    return {
        str(each): str(each.with_name(each.name.removeprefix("test_")))
        for each in found
        if of_no_subject(each)
    }


def test_each_module_has_a_test_file() -> None:
    """A module has a test file of its name, in the folder of its name, or a reason."""
    assert modules() - set(modules_of_tests().values()) == set(WITHOUT)


def test_each_test_file_has_a_module() -> None:
    """A test file has a module of its name, or a reason."""
    without = {file for file, module in modules_of_tests().items() if module not in modules()}
    assert without == set(OTHERS)


@pytest.mark.process
@pytest.mark.load
def test_a_server_that_is_named(tmp_path: Path) -> None:
    """With --dsn all tests run in one process, also with -n, as two would share its databases."""
    server = postgres.start(tmp_path, THROWAWAY)
    try:
        dsn = server.url
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pytest", "-n", "2", "--dsn", dsn, "-v"),
                *("-p", "no:cacheprovider", "tests/test_features.py", "tests/test_operations.py"),
            ],
            cwd=TESTS.parent,
            env={**os.environ, "PYTEST_ADDOPTS": ""},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    finally:
        postgres.stop(tmp_path)
    assert done.returncode == 0, done.stdout
    assert "tests/test_features.py::test_skips_in_the_bridge PASSED" in done.stdout
    assert "gw0" not in done.stdout


def test_servers_in_memory(tmp_path: Path) -> None:
    """A folder there is used where there is room; what killed runs have left is removed."""
    left, several, used, new = folders = [
        tmp_path / f"pgbackend-{name}" for name in ("left", "several", "used", "new")
    ]
    for folder in folders:
        for place in (folder, folder / "first", folder / "second"):
            if folder != several or place != folder:
                place.mkdir(parents=True)
                (place / "users.lock").touch()
    for folder in (left, several, used):
        os.utime(folder, (0, 0))
    with open(used / "second" / "users.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert in_memory(tmp_path, room=1) == tmp_path
        assert sorted(tmp_path.iterdir()) == [new, used]
    assert in_memory(tmp_path, room=2**60) is None
    assert in_memory(tmp_path / "missing", room=1) is None


def test_cheap_logins(server: Server) -> None:
    """A password that is hashed once lets its user in."""
    port = server.conn.info.port
    login = postgres.Server("", port, "cheap_login", "secret", "postgres")
    server.all("CREATE ROLE cheap_login LOGIN PASSWORD 'secret'")
    try:
        make_logins_cheap(login)
        hashed = server.one("SELECT rolpassword FROM pg_authid WHERE rolname = 'cheap_login'")
        assert hashed.startswith("SCRAM-SHA-256$1:")
        psycopg.connect(login.url).close()
    finally:
        server.all("DROP ROLE cheap_login")


def test_modules_are_short() -> None:
    """No module of the package has more than 350 lines."""
    lengths = {
        str(file.relative_to(PACKAGE)): len(file.read_text().splitlines())
        for file in PACKAGE.rglob("*.py")
    }
    assert {name: length for name, length in lengths.items() if length > 350} == {}
