"""The command ``dbhealth``."""

from __future__ import annotations

import io
import json

import pytest
from django.core.management import call_command

from pgbackend.management.commands.dbhealth import Command
from tests.support.wrapper import AddAlias


def run(*arguments: str) -> tuple[int, str]:
    """Return the exit code of the command, and what it prints."""
    printed = io.StringIO()
    try:
        call_command(Command(stdout=printed), *arguments)
    except SystemExit as end:
        return int(str(end.code)), printed.getvalue()
    return 0, printed.getvalue()


@pytest.fixture
def gone(add_alias: AddAlias) -> str:
    """An alias whose server is not there."""
    return add_alias({"pool": {"max_size": 1, "timeout": 5}}, HOST="127.0.0.1", PORT="1")


def test_well() -> None:
    """Where all databases answer, it says what they are, and ends with 0."""
    code, printed = run("--database", "default", "--database", "other", "--role", "primary")
    assert code == 0
    lines = printed.splitlines()
    assert [line.split(",")[0] for line in lines] == ["default: primary", "other: primary"]


def test_not_well(gone: str) -> None:
    """Where one does not, or is another than it should be, it ends with 1."""
    code, printed = run("--database", "default", "--database", gone, "--within", "5")
    assert code == 1
    assert printed.splitlines()[1] == f"{gone}: no answer: OperationalError"
    code, printed = run("--database", "default", "--role", "replica")
    assert (code, printed) == (1, "default: a primary, not a replica\n")


def test_for_programs() -> None:
    """With --json it prints everything, of all databases by default."""
    code, printed = run("--json")
    found = json.loads(printed)
    assert code == 0
    assert {each["alias"] for each in found} >= {"default", "other"}
    assert all(each["ok"] and each["role"] == "primary" for each in found)
