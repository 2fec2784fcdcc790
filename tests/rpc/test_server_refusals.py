"""What the service refuses: each published way past an ORM, each limit, each message too late."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from django.test import override_settings
from django.test.utils import CaptureQueriesContext

from pgbackend.rpc.protocol import nodes
from pgbackend.rpc.protocol.answers import open_answer
from pgbackend.rpc.protocol.errors import RemoteError
from pgbackend.rpc.protocol.keys import Keys
from pgbackend.rpc.protocol.messages import Message, message_of, milliseconds, seal_message
from pgbackend.rpc.server import registry, replay
from pgbackend.rpc.server.batches import Batch
from pgbackend.rpc.server.checks import check_exposures, check_setting
from pgbackend.rpc.server.expose import expose
from pgbackend.rpc.server.models import SeenNonce
from pgbackend.rpc.server.registry import exposures, unregister
from pgbackend.rpc.server.running import handle
from pgbackend.rpc.server.settings import service
from tests.rpc.site import models
from tests.rpc.site.models import Dish, Hidden, Order, Waiter
from tests.settings import PGBACKEND_RPC
from tests.support.rpc_server import answer_of, ask, code, op, outcomes, q, sealed, tree, where

F = nodes.F

# Names that were SQL once, each in its own way.
INJECTIONS = (
    "a b",
    'a"; DROP TABLE x; --',
    "a'",
    "a/*",
    "a#",
    "a.b",
    "a--",
    "a\x00",
    "a\tb",
    "_connector",
    "_negated",
    "a___b",
    "a__",
)


def raw_code(called: str, *args: Any, **kwargs: Any) -> str | None:
    """Return the code of an operation that no client would write down, past the protocol."""
    asked = nodes.Tree("rpc_site.Dish", (nodes.Op(called, args, kwargs),), op("rows"))
    batch = Batch(message_of([asked], timeout=60.0, principal="chef"), service())
    (outcome,) = batch.run()
    return outcome.error.code if outcome.error else None


@pytest.mark.parametrize("name", INJECTIONS)
def test_names_as_aliases(name: str) -> None:
    """CVE-2022-28346, CVE-2025-57833, CVE-2025-59681, CVE-2025-13372: aliases by dictionary.

    No alias from outside is one in SQL, whatever it is.
    """
    for called in ("annotate", "alias", "values"):
        assert raw_code(called, **{name: F("name")}) == "BadValue"
    assert code(tree("Dish", end=op("count"))) is None
    asked = nodes.Tree("rpc_site.Dish", (), nodes.Op("aggregate", (), {name: F("name")}))
    (outcome,) = Batch(message_of([asked], timeout=60.0), service()).run()
    assert outcome.error is not None
    assert outcome.error.code == "BadValue"


def test_aliases_are_never_in_sql() -> None:
    """A name that a message gives stands in the answer alone, also if a hidden field has it."""
    with CaptureQueriesContext(connection) as queries:
        found = ask(tree("Dish", op("annotate", recipe=F("name"), quite_plain=F("price"))))
    assert found.shape.fields[-2:] == ("recipe", "quite_plain")
    assert not any("quite_plain" in each["sql"] for each in queries)
    # As Django's own default ones, it may be that of a path, which it hides afterwards.
    Dish.objects.create(name="soup", price=5)
    shadowed = tree("Dish", op("annotate", orders__count=F("price")), where(orders__count=5))
    with CaptureQueriesContext(connection) as queries:
        assert len(ask(shadowed).rows) == 1
    assert not any("orders__count" in each["sql"] for each in queries)


@pytest.mark.parametrize("name", INJECTIONS)
def test_names_as_paths(name: str) -> None:
    """CVE-2025-64459, CVE-2021-35042: keywords and orders; no such path, and no argument of Q's."""
    assert raw_code("filter", **{name: "x"}) == "FieldNotAllowed"
    assert raw_code("exclude", nodes.Q("and", ((name, "x"),))) == "FieldNotAllowed"
    assert raw_code("order_by", name) == "FieldNotAllowed"
    assert raw_code("order_by", f"-{name}") == "FieldNotAllowed"
    assert raw_code("values", name) == "FieldNotAllowed"
    assert raw_code("values_list", name) == "FieldNotAllowed"
    assert raw_code("distinct", name) == "FieldNotAllowed"
    assert raw_code("only", name) == "FieldNotAllowed"
    assert raw_code("select_related", name) == "FieldNotAllowed"
    assert raw_code("prefetch_related", name) == "FieldNotAllowed"
    assert raw_code("annotate", a=F(name)) == "FieldNotAllowed"


def test_order_by_column() -> None:
    """CVE-2021-35042: an order by "table.column", or at random, is none."""
    for name in ("rpc_site_dish.recipe", "rpc_site_dish.name", "?", "1", "name ASC"):
        assert raw_code("order_by", name) == "FieldNotAllowed"


def test_explain_options() -> None:
    """CVE-2022-28347: the names of explain()'s options are a fixed set."""
    assert code(tree("Dish", end=op("explain", verbose=True, format="json"))) is None
    for options in ({"a) SELECT 1": True}, {"analyze": "true) SELECT 1"}, {"format": "text) --"}):
        asked = nodes.Tree("rpc_site.Dish", (), nodes.Op("explain", (), options))
        (outcome,) = Batch(message_of([asked], timeout=60.0), service()).run()
        assert outcome.error is not None
        assert outcome.error.code == "BadValue"
    assert code(tree("Order", end=op("explain"))) == "OperationNotAllowed"


def test_keys_of_json() -> None:
    """CVE-2024-42005, CVE-2024-53908: keys of JSON are parameters, and columns have our names."""
    Dish.objects.create(name="soup", data={"a": {"b": 1}, 'x"y': 2})
    found = ask(tree("Dish", op("values", "data__a")))
    assert (found.shape.fields, found.rows) == (("data__a",), [[{"b": 1}]])
    assert raw_code("values", 'data__a" FROM x --') is None
    with CaptureQueriesContext(connection) as queries:
        assert code(tree("Dish", where(data__zzz="x"))) is None
    assert all('"zzz"' not in each["sql"] for each in queries)
    # A lookup that is not exposed is a key inside of JSON, and elsewhere nothing.
    Dish.objects.create(name="fish", data={"has_key": "a"})
    assert [row[1] for row in ask(tree("Dish", where(data__has_key="a"))).rows] == ["fish"]
    assert code(tree("Station", where(name__has_key="a"))) == "LookupNotAllowed"


ORACLES = [
    where(recipe="secret"),
    where(recipe__startswith="s"),
    where(station__safe_code="0000"),
    where(orders__waiter__password__startswith="h"),
    where(hidden__word="x"),
    where(hidden=1),
    where(orders__dish__recipe="x"),
    op("exclude", q(("recipe", "x"))),
    op("order_by", "recipe"),
    op("order_by", "station__safe_code"),
    op("values", "recipe"),
    op("values_list", "orders__waiter__password"),
    op("annotate", a=F("recipe")),
    op("annotate", a=nodes.Function("Lower", (F("recipe"),))),
    op("annotate", a=nodes.Aggregate("Max", (F("station__safe_code"),))),
    op("annotate", a=nodes.Aggregate("Count", (F("hidden"),))),
    op("annotate", a=nodes.Case((nodes.When(q(("recipe", "x")), 1),), 0)),
    op("annotate", a=nodes.Aggregate("Count", (F("id"),), filter=q(("recipe", "x")))),
    op("filter", q(("name", F("recipe")))),
    op("filter", q(nodes.Exists(tree("Hidden")))),
    op("filter", q(nodes.Exists(tree("Waiter", where(password="x"))))),
    op("filter", q(nodes.Exists(tree("Waiter", where(login=nodes.OuterRef("recipe")))))),
    op("filter", q(("name__in", nodes.Delayed(tree("Waiter", op("values", "password")))))),
    op("distinct", "recipe"),
    op("only", "recipe"),
    op("defer", "recipe"),
    op("dates", "recipe", "year"),
    op("select_related", "hidden"),
    op("prefetch_related", "hidden"),
    op("prefetch_related", "orders__receipts"),
    op("union", nodes.Delayed(tree("Waiter"))),
    op("union", nodes.Delayed(tree("Hidden"))),
    op("annotate", a=nodes.Aggregate("StdDev", (F("price"),))),
    op("annotate", a=nodes.Function("Reverse", (F("name"),))),
    where(name__regex="x"),
    where(created__hour=1),
]


@pytest.mark.parametrize("number", range(len(ORACLES)))
def test_oracles(number: int) -> None:
    """What is not exposed tells nothing, in no place that takes a path: it is as if not there."""
    with CaptureQueriesContext(connection) as queries:
        found = code(tree("Dish", ORACLES[number]))
    assert found is not None
    assert found.endswith(("NotAllowed", "NotExposed")), found
    sql = " ".join(each["sql"] for each in queries)
    assert "recipe" not in sql
    assert "password" not in sql


def test_alike() -> None:
    """What is not exposed and what is not there answer in the same words."""
    for hidden, missing in (("Hidden", "Nothing"),):
        errors = [outcomes(tree(each))[0].error for each in (hidden, missing)]
        assert str(errors[0]).replace(hidden, missing) == str(errors[1])
    errors = [outcomes(tree("Dish", where(**{each: 1})))[0].error for each in ("recipe", "nothing")]
    assert str(errors[0]).replace("recipe", "nothing") == str(errors[1])


def test_lookups_that_are_fields() -> None:
    """A lookup on a relation is never taken for a field behind it."""
    assert code(tree("Dish", where(station__safe_code__exact="0"))) == "LookupNotAllowed"
    assert code(tree("Order", where(waiter__password="x"))) in (
        "LookupNotAllowed",
        "TransformNotAllowed",
    )


# Limits


def limited(**limits: Any) -> Any:
    return override_settings(PGBACKEND_RPC={**PGBACKEND_RPC, "LIMITS": limits})


def test_rows() -> None:
    """As many rows as are allowed come; one more is refused, wherever it comes from."""
    Dish.objects.bulk_create(Dish(name=f"dish {number}") for number in range(4))
    waiter = Waiter.objects.create(login="ada")
    for dish in Dish.objects.all():
        Order.objects.create(dish=dish, waiter=waiter)
    with limited(max_rows=4):
        assert code(tree("Dish")) is None
        assert code(tree("Dish", op("values", "name"))) is None
        assert code(tree("Dish", op("prefetch_related", "orders"))) == "TooManyRows"
        two = outcomes(tree("Dish"), tree("Dish", end=op("first")))
        assert [each.error and each.error.code for each in two] == [None, "TooManyRows"]
    with limited(max_rows=3):
        for ops in ([], [op("values", "name")], [op("slice", 0, 10**9)]):
            assert code(tree("Dish", *ops)) == "TooManyRows"
        assert code(tree("Dish", end=op("in_bulk"))) == "TooManyRows"
        assert code(tree("Dish", op("slice", 0, 3))) is None
        assert ask(tree("Dish", end=op("count"))) == 4


def test_limits_of_the_protocol() -> None:
    """Batch, bytes, depth and nodes: at the limit, and one past it."""
    count = tree("Dish", end=op("count"))
    with limited(max_batch=2):
        assert len(outcomes(count, count)) == 2
        with pytest.raises(RemoteError, match="BatchTooLarge"):
            outcomes(count, count, count)
    wire = sealed(count)
    with limited(max_bytes=len(wire)):
        assert answer_of(wire).error is None
    with limited(max_bytes=len(wire) - 1):
        assert str(answer_of(wire).error).startswith("TooLarge")
    asked = tree("Dish", where(name="x"), end=op("exists"))
    with limited(max_nodes=4):
        assert ask(asked) is False
    with limited(max_nodes=3), pytest.raises(RemoteError, match="TooManyNodes"):
        ask(asked)


def test_subqueries_in_each_other() -> None:
    """Eight subqueries inside each other are allowed, and no more."""

    def nested(depth: int) -> nodes.Tree:
        inner = nested(depth - 1) if depth else None
        ops = [where(pk__in=nodes.Delayed(inner))] if inner else []
        return tree("Dish", *ops)

    assert code(nested(8)) is None
    assert code(nested(9)) == "TooDeep"


def test_a_statement_that_takes_too_long() -> None:
    """The server stops a statement at the service's timeout, and at the message's deadline."""
    unregister(Hidden)

    def slow(principal: Any, queryset: Any) -> Any:
        return queryset.extra(where=["pg_sleep(600) IS NOT NULL"])

    Hidden.objects.create(word="x")
    expose(Hidden, readable=["word"], rows=slow)
    try:
        with limited(statement_timeout=0.05):
            assert code(tree("Hidden")) == "StatementTimeout"
            found = outcomes(tree("Dish"), tree("Hidden"), tree("Dish"))
            assert [each.error and each.error.code for each in found] == [
                *(None, "StatementTimeout", None)
            ]
        assert code(tree("Hidden"), timeout=0.3) == "StatementTimeout"
    finally:
        unregister(Hidden)
    with connection.cursor() as cursor:
        cursor.execute("SHOW statement_timeout")
        assert cursor.fetchone() == ("0",)


# Messages that come too late, from the future, or from somebody else


def message(**changes: Any) -> Message:
    made = message_of([tree("Dish", end=op("count"))], timeout=60.0, principal="chef")
    return replace(made, **changes)


def refused(made: Message, keys: Keys | None = None) -> str | None:
    keys = keys or service().keys
    answer = open_answer(handle(seal_message(made, keys)), service().keys)
    return answer.error.code if answer.error else None


def test_times() -> None:
    """Past deadlines, clocks an hour ahead, and deadlines too far ahead are refused."""
    now = milliseconds(time.time())
    assert refused(message()) is None
    assert refused(message(deadline=now - 1)) == "DeadlinePassed"
    assert refused(message(time=now - 3_500_000)) is None
    assert refused(message(time=now - 3_600_000)) == "BadValue"
    assert refused(message(time=now + 3_600_000, deadline=now + 3_660_000)) == "ClockSkew"
    assert refused(message(time=now + 50_000)) is None
    assert refused(message(time=now, deadline=now + 3_601_000)) == "BadValue"


def test_keys() -> None:
    """A key of another, or one that speaks for somebody else, is refused; k2 is ada's."""
    secret = PGBACKEND_RPC["KEYS"]["k2"]  # type: ignore[index]
    second = Keys("k2", {"k2": secret})
    assert refused(message(principal="ada"), second) is None
    assert refused(message(principal=None), second) is None
    assert refused(message(principal="chef"), second) == "PermissionDenied"
    assert refused(message(), Keys("k1", {"k1": "x" * 32})) == "BadSignature"
    assert refused(message(), Keys("k9", {"k9": "x" * 32})) == "UnknownKey"


def test_old_nonces_go() -> None:
    """Nonces are forgotten once their deadlines are past; the table is not logged."""
    assert refused(message()) is None
    assert SeenNonce.objects.count() == 1
    SeenNonce.objects.update(until="2020-01-01T00:00:00Z")
    replay._next_prune = 0.0
    assert refused(message()) is None
    assert SeenNonce.objects.count() == 1
    with connection.cursor() as cursor:
        cursor.execute("SELECT relpersistence FROM pg_class WHERE relname LIKE '%%seennonce'")
        assert cursor.fetchone() == ("u",)


def test_log(caplog: pytest.LogCaptureFixture) -> None:
    """Each message is logged: client, principal, models, ends, codes, rows and duration."""
    Dish.objects.create(name="soup")
    with caplog.at_level(logging.INFO, "pgbackend.rpc.server.messages"):
        outcomes(tree("Dish"), tree("Hidden"), name="till")
    (record,) = (each for each in caplog.records if each.name.endswith(".messages"))
    found: Any = record
    assert found.rpc_client.startswith("till[")
    assert (found.rpc_principal, found.rpc_rows) == ("chef", 1)
    assert found.rpc_trees == [("rpc_site.Dish", "rows"), ("rpc_site.Hidden", "rows")]
    assert found.rpc_codes == [None, "NotExposed"]
    assert 0 < found.rpc_duration < 60


def test_errors_without_secrets() -> None:
    """Errors have no traceback and no text of the server's, unless the service says so."""
    Dish.objects.create(name="soup")
    twice = tree("ServerModel", end=op("insert", {"id": 1, "some_field": "secret"}))
    assert code(twice) is None
    (outcome,) = outcomes(twice)
    assert outcome.error is not None
    assert "secret" not in str(outcome.error)
    assert outcome.error.details == {"sqlstate": "23505", "constraint": "rpc_site_servermodel_pkey"}
    with override_settings(PGBACKEND_RPC={**PGBACKEND_RPC, "TRACEBACKS": True}):
        (outcome,) = outcomes(tree("Dish", end=op("call", "fail")))
        assert outcome.error is not None
        assert "RuntimeError" in outcome.error.details["traceback"]


# What a project may write


WRONG: list[dict[str, Any]] = [
    {"readable": ["nothing"]},
    {"readable": ["labels"]},
    {"readable": "name"},
    {"writable": ["nothing"]},
    {"paths": ["nothing__name"]},
    {"paths": ["station__safe_code"]},
    {"paths": ["hidden__word"]},
    {"ordering": ["recipe"]},
    {"lookups": {"recipe": ["exact"]}},
    {"aggregates": ["Nothing"]},
    {"functions": ["Repeat"]},
    {"operations": ["drop"]},
    {"methods": ["nothing"]},
    {"max_rows": 0},
    {"nothing": 1},
]


@pytest.mark.parametrize("options", WRONG, ids=repr)
def test_wrong_exposures(options: dict[str, Any]) -> None:
    """A wrong name or option is an error of the project, said when messages come."""
    known = registry.exposure_of(models.Dish)
    unregister(models.Dish)
    try:
        with pytest.raises(ImproperlyConfigured, match=r"rpc_site\.Dish"):
            expose(models.Dish, **options)
            exposures()
    finally:
        registry.register(known, anew=True)


def test_names_of_columns() -> None:
    """Options may name a field as a message may: "pk", or by its column."""
    known = registry.exposure_of(models.Dish)
    expose_options: dict[str, Any] = {
        "lookups": {"*": ["exact"], "station_id": ["in"], "pk": ["gt"]},
        "ordering": ["pk", "station_id"],
        "paths": ["station", "station__name"],
    }
    unregister(models.Dish)
    try:
        expose(models.Dish, readable=["name", "station"], **expose_options)
        for name in ("pk", "id", "station", "station_id"):
            assert code(tree("Dish", op("order_by", name))) is None, name
        for path in ("pk__gt", "id__gt"):
            assert code(tree("Dish", where(**{path: 1}))) is None, path
        for path in ("station__in", "station_id__in"):
            assert code(tree("Dish", where(**{path: [1]}))) is None, path
        assert code(tree("Dish", op("order_by", "name"))) == "OrderingNotAllowed"
        assert code(tree("Dish", where(name__in=["x"]))) == "LookupNotAllowed"
    finally:
        registry.register(known, anew=True)


def test_describe_what_is_read_on_the_way() -> None:
    """A model that is read over relations alone is described, as far as it may be read."""
    known = registry.exposure_of(models.Label)
    unregister(models.Label)
    try:
        expose(models.Label, readable=["word"], operations=[])
        found = ask(tree("", end=op("describe"))).get("models")["rpc_site.Label"]
        assert (found["x-operations"], list(found["properties"])) == ([], ["id", "word"])
        assert code(tree("Label")) == "OperationNotAllowed"
    finally:
        registry.register(known, anew=True)


def test_checks() -> None:
    """`manage.py check` names each exposure that is wrong, and a wrong setting."""
    assert check_exposures() == check_setting() == []
    known = [registry.exposure_of(model) for model in (models.Dish, models.Order)]
    for each in known:
        unregister(each.model)
    try:
        expose(models.Dish, readable=["nothing"])
        expose(models.Order, paths=["dish__recipe"])
        found = check_exposures()
        assert [each.id for each in found] == ["pgbackend.rpc.E011"] * len(found)
        assert any("rpc_site.Dish" in each.msg and "nothing" in each.msg for each in found)
        assert any("rpc_site.Order" in each.msg and "recipe" in each.msg for each in found)
    finally:
        for each in known:
            registry.register(each, anew=True)
    with override_settings(PGBACKEND_RPC={**PGBACKEND_RPC, "PRINCIPAL": "no.such.function"}):
        (wrong,) = check_setting()
        assert wrong.id == "pgbackend.rpc.E012"
    with override_settings(PGBACKEND_RPC={"KEYS": {"k": "short"}}):
        (wrong,) = check_setting()
        assert "32" in wrong.msg


def test_describe() -> None:
    """describe says what a principal may do, and nothing of what it may not."""
    found = ask(tree("", end=op("describe"))).get("models")
    assert "rpc_site.Hidden" not in found
    dish = found["rpc_site.Dish"]
    assert "recipe" not in str(dish)
    assert dish["properties"]["price"]["x-options"]["max_digits"] == 8
    assert dish["x-methods"] == [
        "cheap",
        "fail",
        "inside",
        "judge",
        "loaded",
        "menu",
        "refuse",
        "rename",
        "total_price",
    ]
    assert code(tree("Hidden", end=op("describe"))) == "NotExposed"


def test_long_names() -> None:
    """An alias has 63 characters at most, and a path of select_related eight relations."""
    for called in ("annotate", "alias", "values"):
        assert raw_code(called, **{"a" * 63: F("name")}) is None
        assert raw_code(called, **{"a" * 64: F("name")}) == "BadValue"
    way = "parent__parent__parent__parent__parent__parent__parent__parent"
    for path, wanted in ((way, "FieldNotAllowed"), (f"{way}__parent", "BadValue")):
        for called in ("select_related", "prefetch_related"):
            found = code(tree("ServerModel", op(called, path)))
            # A prefetch goes from model to model, a selection by paths that are exposed.
            assert found == (None if called[0] == "p" and wanted != "BadValue" else wanted)
