"""The golden vectors: each is written and read as the files say, and wrong ones are refused."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pgbackend.rpc.protocol.answers import Answer, Outcome, open_answer, seal_answer
from pgbackend.rpc.protocol.errors import RemoteError, error_of
from pgbackend.rpc.protocol.invalid import invalids
from pgbackend.rpc.protocol.json_text import dumped, loaded
from pgbackend.rpc.protocol.keys import Keys
from pgbackend.rpc.protocol.limits import Limits
from pgbackend.rpc.protocol.messages import open_message, seal_message
from pgbackend.rpc.protocol.nodes import Json
from pgbackend.rpc.protocol.trees import decode_tree, encode_tree
from pgbackend.rpc.protocol.values import decode, encode
from tests.rpc.vectors.reading import HERE, python_of, vectors, wire_of

LIMITS = Limits()


def each_of(found: list[dict[str, Any]]) -> Callable[[Callable[..., None]], Callable[[], None]]:
    """Run a test for each of the vectors: one test, as each has a cost of its own here."""

    def decorated(test: Callable[..., None]) -> Callable[[], None]:
        def test_all() -> None:
            assert found
            for vector in found:
                try:
                    test(vector)
                except Exception as error:
                    error.add_note(f"the vector {vector['name']!r}")
                    raise

        test_all.__doc__ = test.__doc__
        return test_all

    return decorated


def keys_of(name: str, key_id: str = "k1") -> Keys:
    """Return the keys of a file of vectors."""
    return Keys(key_id, vectors(name)["secrets"])


def same(one: Any, other: Any) -> bool:
    """Tell whether both are the same value of the same type: nan is itself, True is not 1."""
    if type(one) is not type(other):
        return False
    return bool(one == other) if isinstance(one, set) else repr(one) == repr(other)


def wrong(found: Any) -> Any:
    """Return what *found* says is wrong, in the form of the vectors."""
    match found:
        case dict():
            return {name: list(map(wrong, below)) for name, below in found.items()}
        case list():
            return list(map(wrong, found))
    return [str(found), found.code, found.message]


@each_of(vectors("values"))
def test_values(vector: dict[str, Any]) -> None:
    """A value is written as its text says, and that text is read as the value."""
    value = python_of(vector)
    assert dumped(encode(value)) == vector["wire"]
    assert same(decode(loaded(vector["wire"].encode(), 100)), value)


@each_of(vectors("json_documents"))
def test_documents(vector: dict[str, Any]) -> None:
    """A JSON document is sent as it is, and read as what it holds."""
    value = python_of(vector)
    assert dumped(encode(Json(value))) == vector["wire"]
    assert same(decode(loaded(vector["wire"].encode(), 100)), value)


@each_of(vectors("trees"))
def test_trees(vector: dict[str, Any]) -> None:
    """A tree is written as its text says, and that text is read as the tree."""
    tree = python_of(vector)
    assert dumped(encode_tree(tree)) == vector["wire"]
    assert decode_tree(loaded(vector["wire"].encode(), 100)) == tree


@each_of(vectors("bad_values"))
def test_bad_values(vector: dict[str, Any]) -> None:
    """What no value is written as is refused with its code."""
    with pytest.raises(RemoteError) as caught:
        decode(loaded(vector["wire"].encode(), 100))
    assert caught.value.code == vector["code"]


@each_of(vectors("bad_trees"))
def test_bad_trees(vector: dict[str, Any]) -> None:
    """What is no tree is refused with its code."""
    with pytest.raises(RemoteError) as caught:
        decode_tree(loaded(vector["wire"].encode(), 100))
    assert caught.value.code == vector["code"]


@each_of(vectors("messages")["vectors"])
def test_messages(vector: dict[str, Any]) -> None:
    """A message is opened, and sealed again is the same text but for its space."""
    keys = keys_of("messages", vector["wire"].split(".")[1])
    message = open_message(vector["wire"], keys, LIMITS, vectors("messages")["now"])
    assert message.id == vectors("messages")["id"]
    if "\n" not in vector["wire"]:
        # The member that may be left out comes last.
        text = vector["wire"].replace(',"dry":true', "").split(".", 3)[3]
        again = seal_message(message, keys).replace(',"dry":true', "").split(".", 3)[3]
        assert again == text
    assert open_message(seal_message(message, keys), keys, LIMITS, vectors("messages")["now"]) == (
        message
    )


@each_of(vectors("bad_messages")["vectors"])
def test_bad_messages(vector: dict[str, Any]) -> None:
    """A message that is wrong is refused with its code, and the id is told where it was read."""
    with pytest.raises(RemoteError) as caught:
        open_message(wire_of(vector), keys_of("messages"), LIMITS, vectors("messages")["now"])
    error = caught.value
    assert error.code == vector["code"]
    if error.code in ("UnknownKey", "BadSignature"):
        # Nothing of the body was looked at.
        assert (error.key_id, error.message_id) == (None, None)
    if error.code in ("ClockSkew", "DeadlinePassed"):
        assert (error.key_id, error.message_id) == ("k1", vectors("messages")["id"])


@each_of(vectors("answers")["vectors"])
def test_answers(vector: dict[str, Any]) -> None:
    """An answer is opened, its errors by code; sealed again it is the same text."""
    keys = keys_of("answers")
    answer = open_answer(vector["wire"], keys, LIMITS, vectors("answers")["id"])
    if "error" in vector:
        assert answer.error is not None
        assert (answer.error.code, answer.error.sealed) == (vector["error"], vector["sealed"])
    else:
        found = [None if each.error is None else each.error.code for each in answer.outcomes]
        assert found == vector["codes"]
    if "wrong" in vector:
        error = answer.outcomes[0].error
        assert error is not None
        assert wrong(invalids(error.details)) == vector["wrong"]
    key_id = vector["wire"].split(".")[1]
    assert seal_answer(answer, keys, None if key_id == "-" else key_id) == vector["wire"]


@each_of(vectors("bad_answers")["vectors"])
def test_bad_answers(vector: dict[str, Any]) -> None:
    """An answer that is wrong is refused with its code."""
    with pytest.raises(RemoteError) as caught:
        open_answer(vector["wire"], keys_of("answers"), LIMITS, vectors("answers")["id"])
    assert caught.value.code == vector["code"]


def test_each_code_is_in_the_answer_that_it_came_in() -> None:
    """An error of any code is the same class after its way in an answer."""
    keys = keys_of("answers")
    for code in ("DoesNotExist", "TooDeep", "Unheard"):
        error = error_of(code, "of it", {"a": [1]})
        answer = Answer(id="0" * 32, time=0, outcomes=(Outcome(error=error),))
        sent = seal_answer(answer, keys, "k1")
        with pytest.raises(type(error)) as caught:
            open_answer(sent, keys).outcomes[0].result()
        assert (caught.value.code, caught.value.details) == (code, {"a": [1]})


@pytest.mark.process
def test_the_files_are_those_of_the_script(tmp_path: Path) -> None:
    """The script that seals the vectors, which knows nothing of the package, writes these files."""
    script = tmp_path / "seal.py"
    script.write_text((HERE / "seal.py").read_text())
    subprocess.run([sys.executable, "-I", str(script)], check=True)
    for name in ("messages", "bad_messages", "answers", "bad_answers"):
        made = (tmp_path / f"{name}.json").read_text(encoding="utf-8")
        assert made == (HERE / f"{name}.json").read_text(encoding="utf-8")
