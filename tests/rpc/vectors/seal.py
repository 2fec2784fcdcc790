"""Write messages.json, answers.json and what is wrong with others, from bodies written by hand.

``python tests/rpc/vectors/seal.py`` writes them beside itself. It knows nothing of the package.
"""

import base64
import hashlib
import hmac
import json
from pathlib import Path

HERE = Path(__file__).parent

# 2026-01-01 00:00:00 UTC.
NOW = 1_767_225_600

SECRETS = {
    "k1": "0123456789abcdef0123456789abcdef",
    "key-2": "a key that was rotated: 32 bytes or more",
}

ID = "00112233445566778899aabbccddeeff"
NONCE = "ffeeddccbbaa99887766554433221100"

ALL_DISHES = '{"model":"kitchen.Dish","ops":[],"end":["rows",[],{}],"fields":null}'


def sealed(body: str, key: str = "k1", secret: str | None = None) -> str:
    """Return *body* with its seal."""
    given = (SECRETS[key] if secret is None else secret).encode()
    text = f"v1.{key}.{body}".encode()
    return f"v1.{key}.{hmac.new(given, text, hashlib.sha256).hexdigest()}.{body}"


def message(trees: str = ALL_DISHES, **changed: str) -> str:
    """Return the body of a message; *changed* has JSON by name."""
    parts = {
        "v": "1",
        "id": f'"{ID}"',
        "client": '{"host":"till-1","process":42,"name":"till"}',
        "time": f"{NOW}000",
        "deadline": f"{NOW + 10}000",
        "principal": "null",
        "nonce": f'"{NONCE}"',
        "idempotency": "null",
        "atomic": "false",
        "trees": f"[{trees}]",
    }
    parts.update(changed)
    return "{" + ",".join(f'"{name}":{text}' for name, text in parts.items() if text) + "}"


def answer(**parts: str) -> str:
    """Return the body of an answer."""
    every = {"v": "1", "id": f'"{ID}"', "time": f"{NOW}500", **parts}
    return "{" + ",".join(f'"{name}":{text}' for name, text in every.items() if text) + "}"


def error(code: str, text: str = "", details: str = "{}") -> str:
    return f'{{"code":"{code}","message":"{text}","details":{details}}}'


ORDER = (
    '{"model":"kitchen.Order","ops":[],"end":["create",[],{"dish":{"$ref":[0,"id"]}}],'
    '"fields":null}'
)

MESSAGES = [
    {"name": "all dishes", "wire": sealed(message())},
    {
        "name": "a write with all there is, by another key",
        "wire": sealed(
            message(
                trees=ALL_DISHES.replace('"rows",[]', '"get",[]') + "," + ORDER,
                principal='"ada"',
                idempotency='"order-1"',
                atomic="true",
                dry="true",
            ),
            "key-2",
        ),
    },
    {
        "name": "text outside ASCII",
        "wire": sealed(
            message(
                trees='{"model":"kitchen.Dish","ops":[["filter",[{"$q":["and",[["name","Ёлка 😀"]],'
                'false]}],{}]],"end":["count",[],{}],"fields":null}',
                principal='"Аня"',
                client='{"host":"till-1","process":0,"name":null}',
            )
        ),
    },
    {"name": "space between the parts", "wire": sealed(message().replace(",", ",\n  "))},
]

BAD_MESSAGES = [
    {"name": "nothing", "wire": "", "code": "Malformed"},
    {"name": "no dots", "wire": "v1", "code": "Malformed"},
    {"name": "a body alone", "wire": message(), "code": "Malformed"},
    {"name": "a version of later", "wire": "v2.k1.x.{}", "code": "UnknownVersion"},
    {"name": "a body of another version", "wire": sealed(message(v="2")), "code": "UnknownVersion"},
    {"name": "a version that is text", "wire": sealed(message(v='"1"')), "code": "UnknownVersion"},
    {"name": "a version that is true", "wire": sealed(message(v="true")), "code": "UnknownVersion"},
    {
        "name": "a key that there is not",
        "wire": sealed(message(), "k9", "0" * 32),
        "code": "UnknownKey",
    },
    {"name": "another secret", "wire": sealed(message(), "k1", "0" * 32), "code": "BadSignature"},
    {
        "name": "another byte",
        "wire": sealed(message()).replace("till-1", "till-2"),
        "code": "BadSignature",
    },
    {"name": "a byte more", "wire": sealed(message()) + " ", "code": "BadSignature"},
    {
        "name": "the seal of another key",
        "wire": sealed(message()).replace("v1.k1.", "v1.key-2."),
        "code": "BadSignature",
    },
    {"name": "no seal", "wire": "v1.-.-." + message(), "code": "BadSignature"},
    {"name": "a key without a seal", "wire": "v1.k1.-." + message(), "code": "Malformed"},
    {
        "name": "a seal in capitals",
        "wire": "v1.k1." + sealed(message()).split(".")[2].upper() + "." + message(),
        "code": "Malformed",
    },
    {"name": "a body that is no JSON", "wire": sealed("{"), "code": "Malformed"},
    {"name": "a body that is a list", "wire": sealed("[]"), "code": "Malformed"},
    {"name": "a byte order mark", "wire": sealed("\ufeff" + message()), "code": "Malformed"},
    {
        "name": "a name twice",
        "wire": sealed(message().replace('"v":1', '"v":1,"v":1')),
        "code": "Malformed",
    },
    {"name": "a name more", "wire": sealed(message(using='"other"')), "code": "Malformed"},
    {"name": "a name less", "wire": sealed(message(atomic="")), "code": "Malformed"},
    {"name": "a short id", "wire": sealed(message(id='"ab"')), "code": "Malformed"},
    {"name": "no nonce", "wire": sealed(message(nonce="null")), "code": "Malformed"},
    {"name": "times as text", "wire": sealed(message(time='"1"')), "code": "Malformed"},
    {"name": "times as floats", "wire": sealed(message(time=f"{NOW}000.0")), "code": "Malformed"},
    {"name": "a time below zero", "wire": sealed(message(time="-1")), "code": "Malformed"},
    {
        "name": "a time beyond 2**53",
        "wire": sealed(message(deadline="9007199254740992")),
        "code": "Malformed",
    },
    {
        "name": "a clock that is an hour ahead",
        "wire": sealed(message(time=f"{NOW + 3600}000", deadline=f"{NOW + 3610}000")),
        "code": "ClockSkew",
    },
    {
        "name": "a clock that is an hour behind",
        "wire": sealed(message(time=f"{NOW - 3600}000", deadline=f"{NOW - 3590}000")),
        "code": "DeadlinePassed",
    },
    {
        "name": "a deadline that is now",
        "wire": sealed(message(deadline=f"{NOW}000")),
        "code": "DeadlinePassed",
    },
    {
        "name": "a deadline in a day",
        "wire": sealed(message(deadline=f"{NOW + 86400}000")),
        "code": "BadValue",
    },
    {
        "name": "a principal of no text",
        "wire": sealed(message(principal='""')),
        "code": "Malformed",
    },
    {
        "name": "a principal with a line end",
        "wire": sealed(message(principal='"a\\nb"')),
        "code": "Malformed",
    },
    {
        "name": "an idempotency key with a space",
        "wire": sealed(message(idempotency='"a b"')),
        "code": "Malformed",
    },
    {"name": "atomic as a number", "wire": sealed(message(atomic="1")), "code": "Malformed"},
    {"name": "no trees", "wire": sealed(message(trees="")), "code": "Malformed"},
    {
        "name": "a reference to itself",
        "wire": sealed(message(trees=ORDER)),
        "code": "Malformed",
    },
    {
        "name": "a client without a host",
        "wire": sealed(message(client='{"host":null,"process":1,"name":null}')),
        "code": "Malformed",
    },
]


def not_utf8(wire: str) -> str:
    """Return the sealed text whose body holds a byte that UTF-8 has not, as base64."""
    body = wire.encode().replace(b"till-1", b"till-\xff")
    head, secret = b"v1.k1.", SECRETS["k1"].encode()
    mac = hmac.new(secret, head + body, hashlib.sha256).hexdigest().encode()
    return base64.b64encode(head + mac + b"." + body).decode()


BAD_MESSAGES.append(
    {"name": "a byte that UTF-8 has not", "wire_base64": not_utf8(message()), "code": "Malformed"}
)

ROWS = (
    '{"$rows":{"kind":"model","model":"kitchen.Dish","pk":["id"],"fields":["id","name"],'
    '"related":[],"prefetched":[],"rows":[[1,"Soup"]]}}'
)

BY_FIELD = (
    '{"messages":{"$dict":[["name",["At most 3, not 4."]],["__all__",["100 % closed."]]]},'
    '"errors":{"$dict":[["name",[{"$tuple":["At most %(most)d, not %(n)d.","max_length",'
    '{"$dict":[["most",3],["n",4]]}]}]],'
    '["__all__",[{"$tuple":["100 % closed.",null,null]}]]]}}'
)
LISTED = (
    '{"messages":["a","5 %"],"errors":[{"$tuple":["a","first",null]},'
    '{"$tuple":["%(n)d %%","second",{"$dict":[["n",5]]}]}]}'
)
SINGLE = '{"messages":["Closed."],"errors":{"$tuple":["Closed.","closed",null]}}'
TEXTS = '{"messages":{"$dict":[["name",["50 %"]]]}}'

ANSWERS = [
    {"name": "rows", "wire": sealed(answer(results=f'[{{"ok":{ROWS}}}]')), "codes": [None]},
    {
        "name": "a result and an error, by another key",
        "wire": sealed(
            answer(
                results='[{"ok":3},{"error":'
                + error("ValidationError", "no", '{"name":["too long"]}')
                + "}]"
            ),
            "key-2",
        ),
        "codes": [None, "ValidationError"],
    },
    {
        "name": "what is wrong by field, with codes and params",
        "wire": sealed(
            answer(results='[{"error":' + error("ValidationError", "no", BY_FIELD) + "}]")
        ),
        "codes": ["ValidationError"],
        "wrong": {
            "name": [["At most 3, not 4.", "max_length", "At most %(most)d, not %(n)d."]],
            "__all__": [["100 % closed.", None, "100 % closed."]],
        },
    },
    {
        "name": "what is wrong as a list",
        "wire": sealed(
            answer(results='[{"error":' + error("ValidationError", "no", LISTED) + "}]")
        ),
        "codes": ["ValidationError"],
        "wrong": [["a", "first", "a"], ["5 %", "second", "%(n)d %%"]],
    },
    {
        "name": "one thing that is wrong",
        "wire": sealed(
            answer(results='[{"error":' + error("ValidationError", "no", SINGLE) + "}]")
        ),
        "codes": ["ValidationError"],
        "wrong": ["Closed.", "closed", "Closed."],
    },
    {
        "name": "what is wrong, of a service that sends no codes",
        "wire": sealed(answer(results='[{"error":' + error("ValidationError", "no", TEXTS) + "}]")),
        "codes": ["ValidationError"],
        "wrong": {"name": [["50 %", None, "50 %"]]},
    },
    {
        "name": "an error of the whole message",
        "wire": sealed(answer(error=error("TooManyRows", "more", '{"max_rows":1000}'))),
        "error": "TooManyRows",
        "sealed": True,
    },
    {
        "name": "an error without a seal",
        "wire": "v1.-.-." + answer(id="null", error=error("UnknownKey")),
        "error": "UnknownKey",
        "sealed": False,
    },
    {
        "name": "an error of a later version",
        "wire": sealed(answer(error=error("OutOfSoup"))),
        "error": "OutOfSoup",
        "sealed": True,
    },
]

BAD_ANSWERS = [
    {"name": "a page of another server", "wire": "<html>", "code": "Malformed"},
    {
        "name": "a result without a seal",
        "wire": "v1.-.-." + answer(results='[{"ok":1}]'),
        "code": "Malformed",
    },
    {
        "name": "the answer to another message",
        "wire": sealed(answer(id=f'"{NONCE}"', results='[{"ok":1}]')),
        "code": "Malformed",
    },
    {
        "name": "a result without an id",
        "wire": sealed(answer(id="null", results='[{"ok":1}]')),
        "code": "Malformed",
    },
    {
        "name": "another secret",
        "wire": sealed(answer(results='[{"ok":1}]'), "k1", "0" * 32),
        "code": "BadSignature",
    },
    {"name": "the message itself", "wire": sealed(message()), "code": "Malformed"},
    {
        "name": "a result and an error in one",
        "wire": sealed(answer(results='[{"ok":1,"error":' + error("ServerError") + "}]")),
        "code": "Malformed",
    },
    {
        "name": "an error without a code",
        "wire": sealed(answer(error='{"code":null,"message":"","details":{}}')),
        "code": "Malformed",
    },
]

FILES = {
    "messages.json": MESSAGES,
    "bad_messages.json": BAD_MESSAGES,
    "answers.json": ANSWERS,
    "bad_answers.json": BAD_ANSWERS,
}


def main() -> None:
    """Write the files."""
    for name, vectors in FILES.items():
        known = {"now": NOW, "id": ID, "secrets": SECRETS, "vectors": vectors}
        (HERE / name).write_text(json.dumps(known, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
