"""Messages that are wrong: mutations of right ones, each sealed by the right key, and noise."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

from pgbackend.rpc.protocol.keys import Keys

# What stands where something else was expected.
ODD: list[Any] = [
    *(None, True, False, 0, -1, 2**53, 2**53 + 1, 2**63, 10**400, 1.5, 1e308, "", "x", "\x00"),
    *("_connector", "__class__", "a\nb", "a__b", "%s", '"', "'; --", "ё" * 300, "x" * 201, "$q"),
    *([], {}, [[]], [None] * 50, {"$": 1}, {"a": 1}, {"$q": 1}, {"$q": []}, {"$q": [[], [], []]}),
    *(
        {"$f": None},
        {"$f": "pk"},
        {"$f": "_state"},
        {"$dt": 0},
        {"$td": "1" * 30},
        {"$dec": "1E+9999"},
    ),
    *(
        {"$int": "1" * 5000},
        {"$float": "1"},
        {"$bytes": "\u2028"},
        {"$set": [[]]},
        {"$set": [1, 1.0]},
    ),
    *({"$dict": [[[], 1]]}, {"$dict": [1]}, {"$json": {"a": ["\ud800"]}}, {"$ip": "1" * 40}),
    *(
        {"$ip": "::1/999"},
        {"$uuid": 1},
        {"$range": [1, 2, []]},
        {"$ref": [0, "id"]},
        {"$ref": [True]},
    ),
    *(
        {"$ref": []},
        {"$ref": [-1]},
        {"$ref": [0, "__class__"]},
        {"$obj": [[], 1]},
        {"$agg": [[], [], {}]},
    ),
    *({"$agg": ["Count", ["*"], {"filter": 1}]}, {"$fn": [{}, []]}, {"$op": [[], 1, 2]}),
    *({"$case": [[[1, 2]], None]}, {"$order": [{"$f": "x"}, [], None]}, {"$exists": {}}),
    *({"$subquery": 1}, {"$delayed": None}, {"$rows": {}}, {"$tuple": {}}, {"$value": {"$q": 2}}),
    {"$set": [{"$tuple": [{"$set": []}]}]},
    {"$set": [{"$delayed": {"model": "a.B", "ops": [], "end": ["rows", [], {}], "fields": None}}]},
]

# Texts that are put into the body as they are.
NOISE = [
    *(
        b"\xff",
        b"\x00",
        b"\xed\xa0\x80",
        b"\xef\xbb\xbf",
        b"NaN",
        b"-Infinity",
        b"1e400",
        b"\\ud800",
    ),
    *(
        b'"',
        b"\\",
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b"[" * 2000,
        b'{"a":' * 500,
        b"9" * 5000,
        b"-",
    ),
    *(b'"v":1,', b'"$q":[],', b"/**/", b"\xe2\x80\xa8", b"'", b"0", b".", b"e", b"\n", b"true"),
]


def _places(item: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Return each place in *item*: an array or object, and an index or name in it."""
    pairs = enumerate(item) if isinstance(item, list) else item.items()
    for key, each in pairs:
        found.append((item, key))
        if isinstance(each, list | dict):
            _places(each, found)
    return found


def _changed(chance: random.Random, body: dict[str, Any]) -> bytes:
    """Return *body* with one to three of its parts replaced, removed, wrapped or repeated."""
    body = json.loads(json.dumps(body))
    for _ in range(chance.randint(1, 3)):
        inside, key = chance.choice(_places(body, []))
        match chance.randrange(6):
            case 0 | 1 | 2:
                inside[key] = copy.deepcopy(chance.choice(ODD))
            case 3:
                del inside[key]
            case 4:
                for _ in range(chance.choice([1, 2, 40, 200])):
                    inside[key] = [inside[key]]
            case _ if isinstance(inside, list):
                inside *= chance.choice([2, 50])
            case _:
                inside[chance.choice(["v", "x", "$q", "_negated", ""])] = inside[key]
        if not body:
            break
    return json.dumps(body, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")


def _spoilt(chance: random.Random, text: bytes) -> bytes:
    """Return *text* with bytes put in, taken out or turned."""
    made = bytearray(text)
    for _ in range(chance.choice([1, 1, 2, 10])):
        at = chance.randrange(len(made)) if made else 0
        match chance.randrange(4):
            case 0:
                made[at:at] = chance.choice(NOISE)
            case 1:
                del made[at : at + chance.choice([1, 5, 1000])]
            case 2 if made:
                made[at] ^= 1 << chance.randrange(8)
            case _:
                made[at:at] = chance.randbytes(chance.choice([1, 4, 100]))
    return bytes(made)


def hostile(seed: int, number: int, bodies: list[dict[str, Any]], keys: Keys) -> Iterator[bytes]:
    """Return *number* sealed texts, the same for the same *seed*; some may be right by chance."""
    chance = random.Random(seed)
    for _ in range(number):
        body = chance.choice(bodies)
        kind = chance.randrange(10)
        if kind < 6:
            text = _changed(chance, body)
        elif kind < 9:
            text = _spoilt(chance, json.dumps(body, ensure_ascii=False).encode())
        else:
            text = chance.randbytes(chance.choice([0, 10, 1000]))
        wire = f"v1.{keys.current}.{keys.mac(keys.current, text)}.".encode() + text
        # What is before the body, too.
        yield _spoilt(chance, wire) if chance.random() < 0.1 else wire
