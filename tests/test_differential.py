"""Random programs of ORM operations come to the same here and on Django's own backend.

The long form is ``python -m tests.differential --operations 20000 --seed 7``.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop

from tests.differential.comparison import Comparison, Report
from tests.differential.models import PLAIN, fields, make_models
from tests.differential.operations import Operation, Place, described, plain
from tests.support.limits import PATIENCE
from tests.support.script import ROOT

# Seconds for each loop: most of a run is making the tables.
BUDGET = float(os.environ.get("PGBACKEND_DIFFERENTIAL_SECONDS", "4"))


@pytest.fixture(scope="module")
def comparison() -> Iterator[Comparison]:
    """Two databases with the tables of the programs."""
    with Comparison(os.environ["PGBACKEND_TEST_DSN"]) as comparison:
        yield comparison


def run(
    comparison: Comparison, *, loop_factory: Any = None, seed: int, seconds: float = 0.01
) -> Report:
    """Run short programs for so many *seconds*, and until the last twenty end; at least one."""
    with warnings.catch_warnings(), asyncio.Runner(loop_factory=loop_factory) as runner:
        # Wrong values are among them, which Django warns of.
        warnings.simplefilter("ignore")
        return runner.run(comparison.run(seed, 20_000, length=12, seconds=seconds))


@pytest.mark.parametrize(
    "loop_factory",
    [asyncio.new_event_loop, pytest.param(uvloop.new_event_loop, marks=pytest.mark.load)],
)
def test_random_programs(comparison: Comparison, loop_factory: Callable[[], Any]) -> None:
    """Alone and twenty at once, programs return, raise and store what they do with Django's own."""
    seed = random.randrange(10**6)
    report = run(comparison, loop_factory=loop_factory, seed=seed, seconds=BUDGET)
    assert report.operations.total() > 10
    assert report.differences == [], f"{report}\n" + "\n".join(report.differences[:20])


async def test_differences_are_seen() -> None:
    """The comparison sees another value, type, exception, order and row."""
    different = [
        (1, True),
        (1, 1.0),
        ("a", b"a"),
        ([1], (1,)),
        ([1, 2], [2, 1]),
        ({"a": None}, {"a": 0}),
        (memoryview(b"a"), memoryview(b"b")),
    ]
    for one, other in different:
        assert plain(one) == plain(one)
        assert plain(one) != plain(other)
    assert described(ValueError("a")) != described(TypeError("a"))
    assert described(ValueError("a")) != described(ValueError("b"))
    models = make_models("seen")
    row, same, other = (models.plain(word=word) for word in ("a", "a", "b"))
    assert plain(row) == plain(same) != plain(other)


def test_a_difference_is_reported(comparison: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes to something else on one backend, or leaves other rows, is in the report."""
    run_stock = Comparison._run_stock

    def differently(self: Comparison, programs: list[list[Operation]]) -> list[list[Any]]:
        found = run_stock(self, programs)
        for models in self._sets:
            Place(models, "differential_stock").manager("plain").create(pk=10**9, word="more")
        return [["something else", *outcomes[1:]] for outcomes in found]

    monkeypatch.setattr(Comparison, "_run_stock", differently)
    values, tables = run(comparison, seed=1).differences
    assert "operation 0" in values
    assert "something else" in values
    assert "tables" in tables
    assert "more" in tables


def test_kinds_of_fields() -> None:
    """The programs are about 25 kinds of fields or more."""
    kinds = {type(field) for field in fields().values()}
    assert len(kinds) >= 25
    assert set(PLAIN) <= set(fields())


@pytest.mark.process
@pytest.mark.load
def test_command_line() -> None:
    """The long form runs by its command line, and says what it ran and what differed."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.differential", "--operations", "1", "--uvloop"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "uvloop" in done.stdout
    assert "0 differences" in done.stdout
