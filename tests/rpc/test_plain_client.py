"""The plain client, over HTTP to a service that knows the protocol alone."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

import pgbackend
from pgbackend.rpc import client as plain
from pgbackend.rpc.client import Client, Count, Exists, F, HttpTransport, OuterRef, Q, Value, When
from pgbackend.rpc.protocol import nodes
from pgbackend.rpc.protocol.errors import (
    BadValue,
    DeadlinePassed,
    DoesNotExist,
    PermissionDenied,
    RemoteError,
    TooDeep,
    TooLarge,
    Unavailable,
    UnknownKey,
)
from pgbackend.rpc.protocol.limits import Limits
from pgbackend.rpc.protocol.trees import decode_tree
from tests.rpc.echo import SECRETS, Echo, serving

K1 = {"k1": SECRETS["k1"]}


@pytest.fixture
def echo() -> Iterator[Echo]:
    """The service, while it runs."""
    with serving() as server:
        yield server


@pytest.fixture
def client(echo: Echo) -> Iterator[Client]:
    """A client of the service."""
    made = Client(HttpTransport(f"{echo.url}/rpc"), K1, timeout=20)
    yield made
    made.close()


def asked(call: Any) -> nodes.Tree:
    """Return the tree that the service says it was asked by *call*."""
    return decode_tree(call.result())


def test_rows(client: Client) -> None:
    """Rows have fields, related rows and prefetched rows as attributes, and a primary key."""
    soup, tea = client.model("kitchen.Dish").filter(id__in=[1, 2]).result()
    assert (soup.pk, soup.name, soup.station.pk, [tag.pk for tag in soup.tags]) == (
        *(1, "Soup", 7),
        [3, 4],
    )
    assert (tea.station, tea.tags) == (None, [])
    assert soup == client.model("kitchen.Dish").first().result()
    assert soup != tea
    assert len({soup, tea, client.model("kitchen.Dish").first().result()}) == 2
    assert repr(soup) == "<kitchen.Dish: 1>"
    with pytest.raises(AttributeError):
        soup.price  # noqa: B018


def test_kinds_of_rows(client: Client) -> None:
    """values() gives dictionaries, values_list() tuples, values, or named tuples."""
    dishes = client.model("kitchen.Dish")
    assert next(iter(dishes.values("id", "name"))) == {"id": 1, "name": "Soup"}
    assert dishes.values_list("id", "name").result() == [(1, "Soup"), (2, "Tea")]
    assert dishes.values_list("id", flat=True).result() == [1, 2]
    assert [row.name for row in dishes.values_list("id", "name", named=True)] == ["Soup", "Tea"]


def test_ends(client: Client) -> None:
    """The ends give a row, None, a pair, a dictionary, as Django's do."""
    dishes = client.model("kitchen.Dish")
    assert dishes.none().first().result() is None
    assert dishes.latest("id").result().name == "Soup"
    assert dishes.create(name="Soup").result().pk == 1
    assert [each.pk for each in dishes.bulk_create([{"name": "Soup"}]).result()] == [1, 2]
    row, created = dishes.get_or_create({"price": 1}, name="Soup").result()
    assert (row.name, created) == ("Soup", True)
    assert dishes.in_bulk([1, 2]).result()[2].name == "Tea"
    assert dishes.call("echo", 1, {"a": timedelta(1)}).result() == [1, {"a": timedelta(1)}]
    with pytest.raises(DoesNotExist, match="no such dish"):
        dishes.none().get().result()


@pytest.mark.parametrize(
    ("call", "end"),
    [
        (lambda q: q.count(), nodes.Op("count")),
        (lambda q: q.exists(), nodes.Op("exists")),
        (lambda q: q.contains(5), nodes.Op("contains", (5,))),
        (lambda q: q.update(a=F("a") + 1), None),
        (lambda q: q.delete(), nodes.Op("delete")),
        (lambda q: q.explain(format="json"), nodes.Op("explain", (), {"format": "json"})),
        (lambda q: q.describe(), nodes.Op("describe")),
        (
            lambda q: q.bulk_update([{"pk": 1, "a": 2}], ["a"]),
            nodes.Op("bulk_update", ([{"pk": 1, "a": 2}], ["a"])),
        ),
        (
            lambda q: q.related_add(1, "tags", 2, 3),
            nodes.Op("related_add", (1, "tags", [2, 3])),
        ),
        (lambda q: q.related_remove(1, "tags", 2), nodes.Op("related_remove", (1, "tags", [2]))),
        (
            lambda q: q.related_set(1, "tags", [2], clear=True),
            nodes.Op("related_set", (1, "tags", [2]), {"clear": True}),
        ),
        (lambda q: q.related_clear(1, "tags"), nodes.Op("related_clear", (1, "tags"))),
    ],
    ids=lambda each: each.name if isinstance(each, nodes.Op) else "",
)
def test_what_ends_send(client: Client, call: Any, end: nodes.Op | None) -> None:
    """An end is sent as Django's method is called."""
    sent = asked(call(client.model("a.B"))).end
    assert sent == (end or nodes.Op("update", (), {"a": nodes.Operation("+", nodes.F("a"), 1)}))


def test_what_querysets_send(client: Client) -> None:
    """Each method is recorded with Django's arguments, conditions as one Q."""
    dishes, orders = client.model("kitchen.Dish"), client.model("kitchen.Order")
    queryset = (
        dishes.filter(Q(price__lt=5) | ~Q(name="x"), station=3)
        .exclude(pk__in=orders.values("dish").delayed())
        .filter(Exists(orders.filter(dish=OuterRef("pk"))))
        .annotate(Count("order"), level=plain.Case(When(price__lt=5, then=Value("low"))))
        .select_related("station")
        .prefetch_related("tags", ("orders", orders, "all_orders"))
        .order_by("-price", F("name").asc(nulls_last=True))[5:10]
    )
    tree = asked(queryset.count())
    inner = nodes.Tree("kitchen.Order", (nodes.Op("values", ("dish",)),))
    outer = nodes.Q("and", (("dish", nodes.OuterRef("pk")),))
    assert tree.ops == (
        nodes.Op(
            "filter",
            (
                nodes.Q(
                    "and",
                    (
                        nodes.Q(
                            "or",
                            (("price__lt", 5), nodes.Q("and", (("name", "x"),), True)),
                        ),
                        ("station", 3),
                    ),
                ),
            ),
        ),
        nodes.Op("exclude", (nodes.Q("and", (("pk__in", nodes.Delayed(inner)),)),)),
        nodes.Op(
            "filter",
            (
                nodes.Q(
                    "and",
                    (nodes.Exists(nodes.Tree("kitchen.Order", (nodes.Op("filter", (outer,)),))),),
                ),
            ),
        ),
        nodes.Op(
            "annotate",
            (),
            {
                "order__count": nodes.Aggregate("Count", (nodes.F("order"),)),
                "level": nodes.Case(
                    (nodes.When(nodes.Q("and", (("price__lt", 5),)), nodes.Value("low")),)
                ),
            },
        ),
        nodes.Op("select_related", ("station",)),
        nodes.Op(
            "prefetch_related",
            ("tags", ("orders", nodes.Delayed(nodes.Tree("kitchen.Order")), "all_orders")),
        ),
        nodes.Op("order_by", ("-price", nodes.OrderBy(nodes.F("name"), False, "last"))),
        nodes.Op("slice", (5, 10)),
    )


def test_every_operation_has_a_method() -> None:
    """Each operation and each end of the protocol can be asked for."""
    from pgbackend.rpc.protocol.names import ENDS, OPERATIONS

    others = {"slice": "__getitem__", "rows": "submit", "changes": "subscribe"}
    others |= {name: f"__{name}__" for name in ("and", "or", "xor")}
    for name in OPERATIONS | ENDS:
        assert callable(getattr(plain.QuerySet, others.get(name, name))), name


def test_slices() -> None:
    """A step, a negative index and a single row are refused, never ignored."""
    rows: Any = Client(HttpTransport("http://127.0.0.1:1"), K1).model("a.B")
    for wrong in (slice(None, None, 2), 1):
        with pytest.raises(TypeError):
            rows[wrong]
    with pytest.raises(ValueError, match="no negative index"):
        rows[:-1]


async def test_awaited(client: Client) -> None:
    """In asynchronous code querysets and ends are awaited, and iterated."""
    dishes = client.model("kitchen.Dish")
    assert [row.pk for row in await dishes] == [1, 2]
    assert [row.pk async for row in dishes] == [1, 2]
    assert (await dishes.get(pk=1)).name == "Soup"
    one, other = await asyncio.gather(dishes.first(), dishes.last())
    assert one == other


async def test_on_a_running_loop(client: Client) -> None:
    """To wait on a running loop is an error that names await; in the bridge it does not block."""
    with pytest.raises(pgbackend.BridgeError, match="await"):
        client.model("kitchen.Dish").result()
    rows = await pgbackend.bridged(client.model("kitchen.Dish").result)()
    assert len(rows) == 2


def test_gathered(client: Client, echo: Echo) -> None:
    """Gathered calls are one message, and each has its result, too."""
    dishes = client.model("kitchen.Dish")
    first, principal = dishes.first(), dishes.call("principal")
    found = client.gather(first, principal, dishes, dishes.values("id").delayed()).result()
    assert found[:2] == [first.result(), None]
    assert [len(each) for each in found[2:]] == [2, 2]
    assert echo.connections == 1
    assert client.gather().result() == []
    # One that was sent already is waited for.
    assert client.gather(first, dishes.last()).result() == [first.result()] * 2


def test_gathered_errors(client: Client) -> None:
    """The first error is raised, or stands where the result would."""
    dishes = client.model("kitchen.Dish")
    with pytest.raises(DoesNotExist):
        client.gather(dishes.first(), dishes.none().get()).result()
    found = client.gather(dishes.first(), dishes.none().get(), return_exceptions=True).result()
    assert found[0].pk == 1
    assert isinstance(found[1], DoesNotExist)
    with pytest.raises(ValueError, match="several clients"):
        client.gather(Client(client.transport, K1).model("a.B"))


def test_references(client: Client) -> None:
    """A later call of a message may have a part of an earlier result as an argument."""
    dishes, orders = client.model("kitchen.Dish"), client.model("kitchen.Order")
    made = dishes.create(name="Soup")
    found = client.gather(made, orders.update(dish=made.ref("id"))).result()
    assert decode_tree(found[1], index=1).end.kwargs == {"dish": nodes.Ref(0, ("id",))}
    with pytest.raises(ValueError, match="same message"):
        orders.update(dish=made.ref("id")).result()
    later = dishes.create(name="Tea")
    with pytest.raises(RemoteError, match="earlier"):
        client.gather(orders.update(dish=later.ref("id")), later).result()


def test_what_cannot_be_sent(client: Client) -> None:
    """What has no form is refused before it is sent, where the result is asked for."""
    with pytest.raises(BadValue, match=r"builtins\.object cannot be sent"):
        client.model("a.B").filter(a=object()).result()
    with pytest.raises(BadValue, match="surrogate"):
        client.model("a.B").filter(a="\ud800").result()
    with pytest.raises(BadValue, match="is no name"):
        client.model("a.B").filter(Q(**{"a b": 1})).result()
    with pytest.raises(BadValue, match="is no name"):
        client.model("a.B").filter(**{"_connector": "or"}).update(**{"a-b": 1}).result()
    nested: Any = []
    for _ in range(200):
        nested = [nested]
    with pytest.raises(TooDeep):
        client.model("a.B").filter(a=nested).result()


def test_keys(echo: Echo) -> None:
    """A key that is not known, or that does not speak for this principal, is refused by code."""
    for keys, principal, error in (
        ({"k9": "x" * 32}, None, UnknownKey),
        ({"k2": SECRETS["k2"]}, "eve", PermissionDenied),
    ):
        client = Client(HttpTransport(f"{echo.url}/rpc"), keys, principal=principal)
        with pytest.raises(error) as caught:
            client.model("a.B").count().result()
        # Who does not know the key cannot be told by a seal.
        assert caught.value.sealed is (error is PermissionDenied)
        client.close()
    # A key with one principal speaks for that one.
    client = Client(HttpTransport(f"{echo.url}/rpc"), {"k2": SECRETS["k2"]})
    assert client.model("a.B").call("principal").result() == "ada"
    client.close()
    with pytest.raises(ValueError, match="has 5 bytes; it needs 32"):
        Client(HttpTransport(echo.url), {"k1": "short"})


def test_connections(client: Client, echo: Echo) -> None:
    """A connection is kept open, and one that the service has closed is not used again."""
    for _ in range(5):
        client.model("a.B").count().result()
    assert echo.connections <= 4
    closing = Client(HttpTransport(f"{echo.url}/closing", threads=1), K1)
    for _ in range(3):
        closing.model("a.B").count().result()
    closing.close()


@pytest.mark.parametrize(("path", "said"), [("/nowhere", "404"), ("/cut", "cut off")])
def test_no_answer(echo: Echo, path: str, said: str) -> None:
    """What is no answer of the service is `Unavailable`, and the next call has a new connection."""
    client = Client(HttpTransport(echo.url + path), K1)
    for _ in range(2):
        with pytest.raises(Unavailable, match=said):
            client.model("a.B").count().result()
    client.close()


def test_a_service_that_ends_while_a_message_waits(echo: Echo) -> None:
    """A message that waits is not sent twice: another process would refuse it as a replay."""
    transport = HttpTransport(f"{echo.url}/dropping")
    wire = "v1.of.no.key"

    def ask() -> str:
        answer: str = transport.send_waiting(wire, deadline=time.time() + 20).result()
        return answer

    # Until one goes by a connection that was kept.
    with pytest.raises(Unavailable, match="RemoteDisconnected"):
        for _ in range(100):
            assert ask().startswith("v1.")
    assert echo.dropped == [wire.encode()]
    # The next one has a new connection.
    assert ask().startswith("v1.")
    transport.close()


def test_nobody_listens() -> None:
    """Where nothing listens a call ends at once with `Unavailable`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    client = Client(HttpTransport(f"http://127.0.0.1:{port}/"), K1)
    with pytest.raises(Unavailable, match="refused"):
        client.model("a.B").count().result()
    client.close()


def test_deadline(echo: Echo) -> None:
    """A call ends by its deadline where the service says nothing."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        client = Client(HttpTransport(url), K1, timeout=0.3)
        before = time.monotonic()
        with pytest.raises(DeadlinePassed):
            client.model("a.B").count().result()
        assert 0.25 < time.monotonic() - before < 5
        client.close()


def test_an_answer_that_is_too_large(echo: Echo) -> None:
    """An answer above the client's limit is not read to its end."""
    limits = Limits(max_answer_bytes=200)
    client = Client(HttpTransport(f"{echo.url}/rpc", limits=limits), K1, limits=limits)
    with pytest.raises(TooLarge) as caught:
        client.model("kitchen.Dish").result()
    assert caught.value.details == {"max_answer_bytes": 200}
    client.close()


def test_a_message_that_is_too_large(echo: Echo) -> None:
    """A message above the client's limit is not sent; the service's own limit holds as well."""
    client = Client(HttpTransport(f"{echo.url}/rpc"), K1)
    with pytest.raises(TooLarge):
        client.model("a.B").filter(a="x" * 2_000_000).result()
    assert echo.connections == 0
    wider = Client(HttpTransport(f"{echo.url}/rpc"), K1, limits=Limits(max_bytes=2**24))
    with pytest.raises(TooLarge) as caught:
        wider.model("a.B").filter(a="x" * 2_000_000).result()
    assert caught.value.details == {"max_bytes": 2**20}
    for each in (client, wider):
        each.close()


def test_closed(echo: Echo) -> None:
    """What waits when the transport is closed, and what comes after, is `Unavailable`."""
    client = Client(HttpTransport(f"{echo.url}/rpc", threads=1), K1)
    calls = [client.model("a.B").call("sleep", 5).start() for _ in range(3)]
    client.close()
    for call in calls:
        with pytest.raises(Unavailable, match="closed"):
            call.result(5)
    with pytest.raises(Unavailable, match="closed"):
        client.model("a.B").count().result(5)


def test_from_several_threads(client: Client) -> None:
    """Threads that share a client each get their own answers."""
    found: dict[int, Any] = {}

    def ask(number: int) -> None:
        found[number] = client.model("a.B").call("echo", number).result()

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: [number] for number in range(12)}


async def test_cancelled(echo: Echo) -> None:
    """A cancelled call ends at once, and the calls that were sent with it."""
    client = Client(HttpTransport(f"{echo.url}/rpc"), K1)
    slow, other = client.model("a.B").call("sleep", 5), client.model("a.B").count()
    gathered = client.gather(slow, other).start()
    assert gathered.cancel()
    for each in (gathered, slow, other):
        with pytest.raises(asyncio.CancelledError):
            await each
    client.close()


def test_conditions() -> None:
    """Conditions combine as Django's do: one connector is one level, an empty one is nothing."""
    a, b, c = Q(a=1), Q(b=2), Q(c=3)
    assert (a | b | c).children == (("a", 1), ("b", 2), ("c", 3))
    assert (a & b & c).children == (("a", 1), ("b", 2), ("c", 3))
    assert ((a | b) & c).children == (Q(("a", 1), ("b", 2), _connector="or"), ("c", 3))
    assert (Q() | a) == (a | Q()) == a
    assert ~~a == a
    assert (~a & b).children == (~a, ("b", 2))
    assert (a ^ b).connector == "xor"
    with pytest.raises(TypeError, match="cannot be combined"):
        a & 1
    many = Q()
    for number in range(1000):
        many |= Q(pk=number)
    assert len(many.children) == 1000


def test_urls() -> None:
    """What is no URL of HTTP is refused."""
    for url in ("ftp://x/", "localhost:8000", "http://"):
        with pytest.raises(ValueError, match="url is http"):
            HttpTransport(url)
