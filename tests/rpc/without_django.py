"""The golden vectors and the plain client, in an interpreter that has no package but greenlet.

``python -S tests/rpc/without_django.py URL`` with the service of tests/rpc/echo.py at URL.
"""

import asyncio
import importlib.util
import sys
from typing import Any

from pgbackend.rpc.client import Client, HttpTransport, Q
from pgbackend.rpc.protocol.answers import open_answer
from pgbackend.rpc.protocol.errors import RemoteError, ValidationError
from pgbackend.rpc.protocol.json_text import dumped, loaded
from pgbackend.rpc.protocol.keys import Keys
from pgbackend.rpc.protocol.limits import Limits
from pgbackend.rpc.protocol.messages import open_message
from pgbackend.rpc.protocol.nodes import Json
from pgbackend.rpc.protocol.trees import decode_tree, encode_tree
from pgbackend.rpc.protocol.values import decode, encode
from tests.rpc.vectors.reading import python_of, vectors, wire_of

FOREIGN = ("django", "psycopg", "psycopg_pool", "asgiref", "celery", "pytest")


def code_of(call: Any, *args: Any) -> str | None:
    try:
        call(*args)
    except RemoteError as error:
        return error.code
    return None


def error_of_vector(error: ValidationError) -> Any:
    """Return what *error* says is wrong, in the form of the vectors."""

    def listed(found: Any) -> list[Any]:
        return [[str(each), each.code, each.message] for each in found]

    if hasattr(error, "error_dict"):
        return {name: listed(found) for name, found in error.error_dict.items()}
    found = listed(error.error_list)
    return found[0] if isinstance(error.details["errors"], tuple) else found


def check_vectors() -> int:
    """Check all vectors; return how many there were."""
    done = 0
    for vector in vectors("values"):
        assert dumped(encode(python_of(vector))) == vector["wire"], vector
        assert dumped(encode(decode(loaded(vector["wire"].encode(), 100)))) == vector["wire"]
        done += 1
    for vector in vectors("json_documents"):
        assert dumped(encode(Json(python_of(vector)))) == vector["wire"], vector
        done += 1
    for vector in vectors("trees"):
        assert dumped(encode_tree(python_of(vector))) == vector["wire"], vector
        assert decode_tree(loaded(vector["wire"].encode(), 100)) == python_of(vector)
        done += 1
    for name, read in (("bad_values", decode), ("bad_trees", decode_tree)):
        for vector in vectors(name):
            code = code_of(lambda text: read(loaded(text.encode(), 100)), vector["wire"])  # noqa: B023
            assert code == vector["code"], vector
            done += 1
    for name in ("messages", "bad_messages"):
        known = vectors(name)
        keys = Keys("k1", known["secrets"])
        for vector in known["vectors"]:
            code = code_of(open_message, wire_of(vector), keys, Limits(), known["now"])
            assert code == vector.get("code"), vector
            done += 1
    for name in ("answers", "bad_answers"):
        known = vectors(name)
        keys = Keys("k1", known["secrets"])
        for vector in known["vectors"]:
            code = code_of(open_answer, vector["wire"], keys, Limits(), known["id"])
            assert code == vector.get("code"), vector
            if "wrong" in vector:
                answer = open_answer(vector["wire"], keys, Limits(), known["id"])
                error = answer.outcomes[0].error
                assert isinstance(error, ValidationError)
                assert error_of_vector(error) == vector["wrong"], vector
            done += 1
    return done


def check_client(url: str) -> None:
    """Ask the service synchronously and asynchronously."""
    client = Client(HttpTransport(f"{url}/rpc"), {"k1": "0123456789abcdef0123456789abcdef"})
    dishes = client.model("kitchen.Dish")
    assert [row.name for row in dishes.filter(Q(id=1) | ~Q(id=2))] == ["Soup", "Tea"]

    async def ask() -> None:
        assert (await dishes.get(id=1)).station.pk == 7
        assert [row.pk async for row in dishes] == [1, 2]
        assert await client.gather(dishes.first(), dishes.values("id")) == [
            await dishes.first(),
            [{"id": 1, "name": "Soup"}, {"id": 2, "name": "Tea"}],
        ]

    asyncio.run(ask())
    client.close()


if __name__ == "__main__":
    there = [name for name in FOREIGN if importlib.util.find_spec(name) is not None]
    assert there == [], there
    number = check_vectors()
    check_client(sys.argv[1])
    assert not set(FOREIGN) & set(sys.modules)
    print(f"{number} vectors, without {', '.join(FOREIGN)}")
