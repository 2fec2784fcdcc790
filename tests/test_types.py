"""What a type checker sees of the package in an application."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.pages.examples import Example, all_examples
from tests.support.limits import PATIENCE

ROOT = Path(__file__).parents[1]

RIGHT = """
from typing import assert_type

from pgbackend import bridged
from pgbackend.transaction import atomic, retrying


@atomic
async def bare(number: int) -> str:
    return str(number)


@atomic(isolation="serializable", read_only=True)
async def asking(number: int) -> str:
    return str(number)


@retrying
async def again(number: int) -> str:
    return str(number)


@retrying(isolation="serializable", attempts=3)
def tried(number: int) -> str:
    return str(number)


async def returns() -> int:
    async with atomic("other", isolation="repeatable read", deferrable=True):
        return 1


def returns_in_a_thread() -> int:
    with atomic(durable=True):
        return 1


async def main() -> None:
    assert_type(await bare(1), str)
    assert_type(await asking(1), str)
    assert_type(await again(1), str)
    assert_type(tried(1), str)
    assert_type(await bridged(tried)(1), str)
    async for attempt in retrying(attempts=3):
        async with attempt:
            assert_type(attempt.number, int)
    for attempt in retrying():
        with attempt:
            pass
"""

WRONG = """
from pgbackend.transaction import atomic, retrying

atomic(isolation="snapshot")
retrying(attempts="3")
"""


@pytest.mark.process
@pytest.mark.parametrize(("code", "errors"), [(RIGHT, []), (WRONG, [4, 5])], ids=["right", "wrong"])
def test_transaction(tmp_path: Path, code: str, errors: list[int]) -> None:
    """`async with atomic()`, decorated functions and attempts have the types that they should."""
    (tmp_path / "shop.py").write_text(code)
    options = ("--strict", "--follow-imports=silent", "--no-error-summary", "--hide-error-context")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, str(tmp_path / "shop.py")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=10 * PATIENCE,
    )
    found = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert [int(line.split(":")[1]) for line in found] == errors, done.stdout + done.stderr


# Errors of checkers that are none of the package, by words of the page or the message. Names that
# an example leaves to the reader, and packages that are not installed, are not looked at.
EXCUSED = (
    # Attributes that setUpTestData makes, as Django's own documentation does.
    r'OrderTests\]?" has no attribute "(dish|order)"',
    r'Need type annotation for "seen"',
    # A payload may have a field with the name of a method, which the package takes care of.
    r'"name" overrides method|base class "BaseChannel" defined the type',
    # Models that are not those of an installed application.
    r'"type\[Dish\]" has no attribute "objects"',
    # Relations from the other side, which pyright cannot know: it has no plugins.
    r'Cannot access attribute "\w+" for class "(Order|Dish|Customer)\*?"',
    # Of django-tenants, Channels and REST framework, which are not installed.
    r'"set_tenant"|docs_howto_channels|"?as_view"?',
)

ATOMIC = "from pgbackend.transaction import atomic as typed_atomic\n"

MYPY = """[mypy]
plugins = mypy_django_plugin.main
ignore_missing_imports = True
follow_imports = silent
check_untyped_defs = True
disable_error_code = name-defined
[mypy.plugins.django-stubs]
django_settings_module = proj.settings
"""


def written(example: Example) -> str:
    """Return an example with the typed `atomic` in place of Django's, as the page says."""
    if "transaction.atomic" not in example.text:
        return example.text
    return ATOMIC + re.sub(r"\btransaction\.atomic", "typed_atomic", example.text)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with each example of the pages in a file of its own."""
    if find_spec("basedpyright") is None or find_spec("mypy_django_plugin") is None:
        pytest.skip("left out: there is no django-stubs or basedpyright; make test installs them")
    folder = tmp_path_factory.mktemp("types")
    (folder / "examples").mkdir()
    for each in all_examples():
        name = re.sub(r"\W", "_", each.page.removesuffix(".md"))
        (folder / "examples" / f"{name}_{each.line}.py").write_text(written(each))
    return folder


def check(folder: Path, *command: str) -> str:
    """Run a checker on the examples and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "MYPYPATH": str(ROOT),
            "SECRET_KEY": "tests",
            "RPC_KEY": "the key of the waiter's terminal in the tests",
        },
        capture_output=True,
        text=True,
        timeout=10 * PATIENCE,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    assert done.stdout, done.stderr
    return done.stdout


def not_excused(errors: list[str]) -> list[str]:
    return [each for each in errors if not any(re.search(words, each) for words in EXCUSED)]


@pytest.mark.load
@pytest.mark.process
def test_examples_with_mypy(examples: Path) -> None:
    """mypy with django-stubs finds no fault in the examples of the pages."""
    (examples / "mypy.ini").write_text(MYPY)
    printed = check(examples, "mypy", "--config-file=mypy.ini", "examples")
    assert not_excused([line for line in printed.splitlines() if ": error:" in line]) == []


@pytest.mark.load
@pytest.mark.process
def test_examples_with_pyright(examples: Path) -> None:
    """Pyright, as basedpyright has it, finds none either."""
    config = {
        "typeCheckingMode": "standard",
        "include": ["examples"],
        "extraPaths": [str(ROOT)],
        "reportMissingImports": False,
        "reportMissingModuleSource": False,
        "reportUndefinedVariable": False,
    }
    (examples / "pyrightconfig.json").write_text(json.dumps(config))
    printed = check(
        examples,
        *("basedpyright", "--outputjson", f"--pythonpath={sys.executable}"),
        *("-p", "pyrightconfig.json"),
    )
    found = [
        f"{each['file']}:{each['range']['start']['line'] + 1}: {each['message']}"
        for each in json.loads(printed)["generalDiagnostics"]
        if each["severity"] == "error"
    ]
    assert not_excused(found) == []
