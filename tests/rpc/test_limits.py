"""Each limit of a message: one at it is taken, one past it is refused with its code."""

from __future__ import annotations

import time
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from pgbackend.rpc.protocol.answers import Answer, Outcome, open_answer, seal_answer
from pgbackend.rpc.protocol.errors import RemoteError
from pgbackend.rpc.protocol.json_text import dumped, loaded
from pgbackend.rpc.protocol.keys import Keys
from pgbackend.rpc.protocol.limits import DEEPEST, DIGITS, Limits
from pgbackend.rpc.protocol.messages import Message, message_of, open_message, seal_message
from pgbackend.rpc.protocol.nodes import F, Json, Op, Operation, Q, Tree
from pgbackend.rpc.protocol.sealing import sealed
from pgbackend.rpc.protocol.trees import decode_tree, encode_tree
from pgbackend.rpc.protocol.values import decode, encode

KEYS = Keys("k", {"k": "s" * 32})
TREE = Tree("a.B")
NOW = 1_767_225_600.0


def code_of(call: Any, *args: Any, **kwargs: Any) -> str | None:
    """Return the code of the error that the call raises, or None."""
    try:
        call(*args, **kwargs)
    except RemoteError as error:
        return error.code
    return None


def message(*trees: Tree, **changed: Any) -> Message:
    made = message_of(trees or [TREE], timeout=10)
    at = int(NOW * 1000)
    return replace(made, **{"time": at, "deadline": at + 10_000, **changed})


def opening(asked: Message, limits: Limits) -> str | None:
    """Return the code with which *asked* is refused."""
    return code_of(open_message, seal_message(asked, KEYS), KEYS, limits, NOW)


def test_bytes() -> None:
    """A message may have max_bytes bytes, of UTF-8 and not of characters."""
    asked = message(Tree("a.B", (Op("filter", (Q("and", (("x", "Ёё"),)),)),)))
    size = len(seal_message(asked, KEYS).encode())
    assert size > len(seal_message(asked, KEYS))
    assert opening(asked, Limits(max_bytes=size)) is None
    assert opening(asked, Limits(max_bytes=size - 1)) == "TooLarge"
    assert code_of(seal_message, asked, KEYS, Limits(max_bytes=size)) is None
    assert code_of(seal_message, asked, KEYS, Limits(max_bytes=size - 1)) == "TooLarge"


def test_bytes_come_before_all_else() -> None:
    """What is too large is refused before its form, seal or encoding is looked at."""
    assert code_of(open_message, b"\xff" * 11, KEYS, Limits(max_bytes=10)) == "TooLarge"
    assert code_of(open_message, "\ud800" * 11, KEYS, Limits(max_bytes=10)) == "TooLarge"
    assert code_of(open_message, "\ud800" * 10, KEYS, Limits(max_bytes=10)) == "Malformed"


def test_bytes_of_an_answer() -> None:
    """An answer may have max_answer_bytes bytes, where it is made and where it is read."""
    answer = Answer(id="0" * 32, time=0, outcomes=(Outcome("x" * 100),))
    wire = seal_answer(answer, KEYS, "k")
    at, past = Limits(max_answer_bytes=len(wire)), Limits(max_answer_bytes=len(wire) - 1)
    assert code_of(seal_answer, answer, KEYS, "k", at) is None
    assert code_of(seal_answer, answer, KEYS, "k", past) == "TooLarge"
    assert code_of(open_answer, wire, KEYS, at) is None
    assert code_of(open_answer, wire, KEYS, past) == "TooLarge"


def test_depth() -> None:
    """A body may have max_depth arrays and objects inside each other."""
    for depth, code in ((10, None), (11, "TooDeep")):
        assert code_of(loaded, b"[" * depth + b"]" * depth, 10) == code
    # Brackets in text are none.
    assert loaded(b'["[[[[[[[[[[[[[[[[[[[[[\\"[[["]', 1) == ["[" * 21 + '"[[[']


def test_depth_of_a_message() -> None:
    """The levels of the message itself are counted, too."""
    # body, trees, tree, ops, op, args, and the lists.
    nested: Any = 1
    for _ in range(14):
        nested = [nested]
    asked = message(Tree("a.B", (Op("values", (nested,)),)))
    assert opening(asked, Limits(max_depth=20)) is None
    assert opening(asked, Limits(max_depth=19)) == "TooDeep"


def test_depth_of_what_is_written() -> None:
    """A value may have 128 levels; deeper ones are refused and never a recursion error."""
    for depth, code in ((DEEPEST, None), (DEEPEST + 1, "TooDeep"), (100_000, "TooDeep")):
        nested: Any = 1
        for _ in range(depth - 1):
            nested = [nested]
        # An object of its own around the document.
        assert code_of(encode, Json(nested)) == code
        nested = [nested]
        assert code_of(encode, nested) == code
        assert code_of(decode, nested) == code
    summed: Any = F("a")
    for _ in range(5000):
        summed = Operation("+", summed, 1)
    assert code_of(encode, summed) == "TooDeep"
    tree = TREE
    for _ in range(5000):
        tree = Tree("a.B", (Op("filter", (Q("and", (("x", tree),)),)),))
    assert code_of(encode_tree, tree) == "BadValue"


def test_circles() -> None:
    """A list that holds itself is too deep."""
    circle: list[Any] = []
    circle.append(circle)
    assert code_of(encode, circle) == "TooDeep"
    assert code_of(encode, Json(circle)) == "TooDeep"


def test_nodes() -> None:
    """All trees of a message may have max_nodes nodes together."""
    # Of each tree: filter, Q, five conditions, the end.
    tree = Tree("a.B", (Op("filter", (Q("and", tuple((f"x{i}", i) for i in range(5))),)),))
    asked = message(tree, tree)
    assert opening(asked, Limits(max_nodes=16)) is None
    assert opening(asked, Limits(max_nodes=15)) == "TooManyNodes"


def test_values_are_no_nodes() -> None:
    """A condition with 10,000 values is one node."""
    tree = Tree("a.B", (Op("filter", (Q("and", (("pk__in", list(range(10_000))),)),)),))
    assert opening(message(tree), Limits(max_nodes=4)) is None


def test_wide_numbers_are_nodes() -> None:
    """Numbers that any number of others may share a hash with are counted."""
    wide = [k * (2**61 - 1) for k in range(10**7, 10**7 + 10)]
    for values in (wide, [Decimal(each) for each in wide], {Decimal(each) for each in wide}):
        tree = Tree("a.B", (), Op("in_bulk", (values,)))
        assert opening(message(tree), Limits(max_nodes=11)) is None
        assert opening(message(tree), Limits(max_nodes=10)) == "TooManyNodes"


def test_batch() -> None:
    """A message may have max_batch trees."""
    for trees, code in ((3, None), (4, "BatchTooLarge")):
        asked = message(*[TREE] * trees)
        assert opening(asked, Limits(max_batch=3)) == code
        assert code_of(seal_message, asked, KEYS, Limits(max_batch=3)) == code


def test_skew() -> None:
    """A message may be max_skew seconds from after now, to the millisecond."""
    at = int(NOW * 1000)
    for ahead, code in ((60_000, None), (60_001, "ClockSkew")):
        asked = message(time=at + ahead, deadline=at + ahead + 1)
        assert opening(asked, Limits(max_skew=60)) == code


def test_deadline() -> None:
    """A deadline is after now, and at most max_deadline seconds after the message's time."""
    at = int(NOW * 1000)
    limits = Limits(max_deadline=30)
    for after, code in ((0, "DeadlinePassed"), (1, None), (30_000, None), (30_001, "BadValue")):
        assert opening(message(time=at, deadline=at + after), limits) == code
    # It may have waited in a queue for nearly as long.
    assert opening(message(time=at - 29_999, deadline=at + 1), limits) is None


def test_zero_milliseconds() -> None:
    """Times without milliseconds are times, of a message and in a value."""
    assert opening(message(time=1_767_225_600_000, deadline=1_767_225_601_000), Limits()) is None
    assert opening(message(time=0, deadline=int(NOW * 1000) + 1), Limits(max_deadline=1e12)) is None


def test_digits() -> None:
    """An integer and a decimal may have 1,000 digits, and a decimal an exponent of 1,000."""
    at, past = 10**DIGITS - 1, 10**DIGITS
    for sign in (1, -1):
        assert decode(encode(sign * at)) == sign * at
        assert decode(encode(Decimal(sign * at))) == sign * at
        assert code_of(encode, sign * past) == "BadValue"
        assert code_of(encode, Decimal(sign * past)) == "BadValue"
        assert code_of(decode, {"$int": str(sign * past)}) == "Malformed"
        assert code_of(decode, {"$dec": str(sign * past)}) == "Malformed"
    for exponent in (f"E+{DIGITS}", f"E-{DIGITS}"):
        assert decode(encode(Decimal("1" + exponent))) == Decimal("1" + exponent)
        assert code_of(encode, Decimal("1" + exponent[:2] + "1001")) == "BadValue"
        assert code_of(decode, {"$dec": "1" + exponent[:2] + "1001"}) == "Malformed"
    assert code_of(loaded, b"9" * (DIGITS + 2), 1) == "Malformed"
    assert code_of(loaded, b"1." + b"9" * DIGITS, 1) == "Malformed"


def test_names() -> None:
    """A name may have 200 characters."""
    for length, code in ((200, None), (201, "Malformed")):
        assert code_of(decode, {"$f": "x" * length}) == code
    item = encode_tree(TREE)
    assert code_of(decode_tree, {**item, "model": "a." + "B" * 198}) is None
    assert code_of(decode_tree, {**item, "model": "a." + "B" * 199}) == "Malformed"


def test_texts_of_the_envelope() -> None:
    """A principal may have 200 characters, an idempotency key 100, a key's id 64."""
    for length, code in ((200, None), (201, "Malformed")):
        assert opening(message(principal="x" * length), Limits()) == code
    for length, code in ((100, None), (101, "Malformed")):
        assert opening(message(idempotency="x" * length), Limits()) == code
    keys = Keys("k" * 64, {"k" * 64: "s" * 32})
    assert code_of(open_message, seal_message(message(), keys), keys, Limits(), NOW) is None
    with pytest.raises(ValueError, match="1 to 64"):
        Keys("k" * 65, {"k" * 65: "s" * 32})


def test_limits_of_limits() -> None:
    """A limit is above zero, and no depth above 128 can be read."""
    with pytest.raises(ValueError, match="max_rows is 0"):
        Limits(max_rows=0)
    with pytest.raises(ValueError, match="statement_timeout is -1"):
        Limits(statement_timeout=-1)
    assert Limits(max_depth=DEEPEST).max_depth == DEEPEST
    with pytest.raises(ValueError, match="at most 128"):
        Limits(max_depth=DEEPEST + 1)


def test_the_limit_is_told() -> None:
    """An error names the limit in its details."""
    with pytest.raises(RemoteError) as caught:
        open_message("x" * 11, KEYS, Limits(max_bytes=10))
    assert caught.value.details == {"max_bytes": 10}
    answer = Answer(id="0" * 32, time=0, outcomes=())
    past = Limits(max_answer_bytes=10)
    for call in (
        lambda: seal_answer(answer, KEYS, "k", past),
        lambda: open_answer("x" * 11, KEYS, past),
    ):
        with pytest.raises(RemoteError) as caught:
            call()
        assert caught.value.details == {"max_answer_bytes": 10}
    with pytest.raises(RemoteError) as caught:
        open_message(seal_message(message(TREE, TREE), KEYS), KEYS, Limits(max_batch=1), NOW)
    assert caught.value.details == {"max_batch": 1}


def seconds(body: bytes) -> float:
    """Return how long it takes to refuse or read *body*, at best of three."""
    taken = []
    wire = sealed(body.decode(), KEYS, "k", None)
    for _ in range(3):
        before = time.process_time()
        code_of(open_message, wire, KEYS, Limits(max_bytes=2**30, max_nodes=10**9), NOW)
        taken.append(time.process_time() - before)
    return min(taken)


@pytest.mark.parametrize(
    ("head", "part", "tail"),
    [
        (b"", b"[", b""),
        (b"", b"{", b""),
        (b"[", b"[],", b"1]"),
        (b"[", b'"\\"', b""),
        (b'"', b"\\", b""),
        (b'"', b'\\"', b""),
        (b'"', b"\\u0000", b'"'),
        (b"[", b'"",', b"1]"),
        (b"", b"]", b""),
        (b"[", b"9", b"]"),
        (b"[-", b"0", b"]"),
        (b"[1.", b"1", b"]"),
        (b"[1e", b"1", b"]"),
        (b"", b" ", b""),
        (b"[", b"true,", b"1]"),
    ],
)
def test_time_is_linear(head: bytes, part: bytes, tail: bytes) -> None:
    """Eight times the bytes take about eight times the time, and never its square."""
    small = 16_384 // len(part)
    one = seconds(head + part * small + tail)
    eight = seconds(head + part * small * 8 + tail)
    # Below a millisecond the clock is too coarse; a square would be 64.
    assert eight < 30 * max(one, 0.001)


def test_hashes_that_collide() -> None:
    """A megabyte of numbers with one hash is refused in the time that it takes to read it."""
    numbers = ",".join(f'{{"$int":"{k * (2**61 - 1)}"}}' for k in range(10**6, 10**6 + 20_000))
    body = f'{{"$set":[{numbers}]}}'
    before = time.process_time()
    assert code_of(decode, loaded(body.encode(), 10), Limits()) == "TooManyNodes"
    assert time.process_time() - before < 2


def test_dumped_is_what_loaded_reads() -> None:
    """Text of any characters that UTF-8 has is written and read as itself."""
    text = "".join(chr(i) for i in range(0x110000) if not 0xD800 <= i < 0xE000)
    assert loaded(dumped(encode(text)).encode(), 1) == text


def test_the_deepest_that_is_written_is_sealed() -> None:
    """Conditions that are as deep as can be written are sent, and refused by code."""
    condition = Q("and", (("x", 1),))
    for _ in range(40):
        condition = Q("or", (condition,))
    tree = Tree("a.B", (Op("filter", (condition,)),))
    assert opening(message(tree), Limits()) == "TooDeep"
    deeper = Tree("a.B", (Op("filter", (Q("or", (condition,)),)),))
    assert code_of(seal_message, message(deeper), KEYS) == "TooDeep"
