"""What a type checker sees of the package in an application."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
