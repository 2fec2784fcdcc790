"""Hostile bytes: whatever comes, a message is opened or refused by a code, in little time."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

import pytest

from pgbackend.rpc.protocol.answers import open_answer, refusal, seal_answer
from pgbackend.rpc.protocol.errors import ERRORS, RemoteError
from pgbackend.rpc.protocol.keys import Keys
from pgbackend.rpc.protocol.limits import Limits
from pgbackend.rpc.protocol.messages import open_message
from tests.rpc.hostile import hostile
from tests.rpc.vectors.reading import vectors

KEYS = Keys("k1", {"k1": "s" * 32})
LIMITS = Limits(max_bytes=100_000)

# What a message may be refused with before anything of it is looked up.
CODES = {
    *("Malformed", "UnknownVersion", "UnknownKey", "BadSignature", "DeadlinePassed", "ClockSkew"),
    *("TooLarge", "TooDeep", "TooManyNodes", "BatchTooLarge", "OperationNotAllowed", "BadValue"),
    *("AggregateNotAllowed", "TransformNotAllowed"),
}


def bodies() -> list[dict[str, Any]]:
    """Return bodies with each value and each tree of the golden vectors."""
    found = [json.loads(each["wire"].split(".", 3)[3]) for each in vectors("messages")["vectors"]]
    values = [json.loads(each["wire"]) for each in vectors("values")]
    trees = [json.loads(each["wire"]) for each in vectors("trees")]
    for at in range(0, len(values), 5):
        tree = {**trees[0], "end": ["call", ["method", *values[at : at + 5]], {"x": values[at]}]}
        found.append({**found[0], "trees": [tree, trees[at // 5 % len(trees)]]})
    return found


def opened_or_refused(open_it: Any, *args: Any) -> Any:
    """Return what *open_it* returns, or the `RemoteError` that it raises."""
    try:
        return open_it(*args)
    except RemoteError as error:
        return error


@pytest.mark.parametrize(
    "number", [1000, pytest.param(10_000, marks=pytest.mark.load)], ids=["short", "long"]
)
def test_malformed_messages(number: int) -> None:
    """Each of these is opened, or refused by one of these codes, which can be answered."""
    now = vectors("messages")["now"]
    found: Counter[str] = Counter()
    for wire in hostile(number, number, bodies(), KEYS):
        before = time.process_time()
        opened = opened_or_refused(open_message, wire, KEYS, LIMITS, now)
        if isinstance(opened, RemoteError):
            found[opened.code] += 1
            assert opened.code in CODES, wire
            answer = open_answer(seal_answer(refusal(opened), KEYS, opened.key_id), KEYS)
            assert type(answer.error) is ERRORS[opened.code]
        else:
            found["taken"] += 1
        # Far above what it takes: a machine may be busy.
        assert time.process_time() - before < 2, wire
    assert found["Malformed"] > number / 2
    # The mutations reach what is behind the parser.
    assert set(found) > {"taken", "BadSignature", "TooDeep", "OperationNotAllowed"}
    assert sum(found.values()) == number


@pytest.mark.parametrize(
    "number", [300, pytest.param(10_000, marks=pytest.mark.load)], ids=["short", "long"]
)
def test_malformed_answers(number: int) -> None:
    """A client takes an answer, or refuses it by a code."""
    answers = [json.loads(each["wire"].split(".", 3)[3]) for each in vectors("answers")["vectors"]]
    taken = 0
    for wire in hostile(number, number, answers, KEYS):
        opened = opened_or_refused(open_answer, wire, KEYS, LIMITS)
        if isinstance(opened, RemoteError):
            assert opened.code in CODES, wire
        else:
            taken += 1
    assert 0 < taken < number / 2
