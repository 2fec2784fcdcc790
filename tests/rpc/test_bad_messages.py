"""Bad messages over each transport: a coded error comes back at once, and the next one works."""

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from django.core.exceptions import PermissionDenied
from django.db import connections

from pgbackend.rpc.protocol import nodes
from pgbackend.rpc.protocol.answers import Answer, open_answer
from pgbackend.rpc.protocol.errors import (
    BadSignature,
    ClockSkew,
    DeadlinePassed,
    FieldNotAllowed,
    RemoteError,
    Replayed,
    TooManyRows,
    UnknownKey,
    UnknownVersion,
)
from pgbackend.rpc.protocol.keys import Keys
from pgbackend.rpc.protocol.messages import Message, message_of, seal_message
from pgbackend.rpc.protocol.sealing import sealed
from tests.rpc.site import models as site
from tests.rpc.waiter.models import ClientModel, Station
from tests.support.limits import AT_ONCE
from tests.support.rpc import alias

HOUR = 3_600_000

SECRETS = {
    "k1": "the first secret of the tests, with 32 bytes or more",
    "k2": "the other secret of the tests, with 32 bytes or more",
}


@pytest.fixture(autouse=True)
def _nothing_waits(service: str) -> Iterator[None]:
    """No message of the test waits for an answer at its end, and the service answers the next."""
    yield
    assert ClientModel.objects.count() >= 0
    pending = getattr(connections[service].service.transport, "pending", ())
    assert not len(pending)


def message(*, create: str = "", **changes: Any) -> Message:
    """Return a message that counts, or creates a row with that text."""
    end = nodes.Op("create", (), {"some_field": create}) if create else nodes.Op("count")
    tree = nodes.Tree("rpc_site.ServerModel", (), end)
    return replace(message_of((tree,), timeout=10.0, principal="chef"), **changes)


def keys(key_id: str = "k1") -> Keys:
    return Keys.from_settings({"KEYS": SECRETS, "KEY": key_id})


def send(service: str, wire: str) -> Answer:
    """Send a text as it is, and return what comes back. Raise the error of a refusal."""
    transport = connections[service].service.transport
    sent = transport.send(wire, urgent=False, deadline=time.time() + AT_ONCE)
    answer = open_answer(sent.result(AT_ONCE), keys())
    if answer.error is not None:
        raise answer.error
    return answer


def test_wrong_clocks(service: str) -> None:
    """A client whose clock is an hour ahead is told so; one an hour behind has no time left."""
    now = int(time.time() * 1000)
    ahead = message(time=now + HOUR, deadline=now + HOUR + 10_000)
    with pytest.raises(ClockSkew):
        send(service, seal_message(ahead, keys()))
    behind = message(time=now - HOUR, deadline=now - HOUR + 10_000)
    with pytest.raises(DeadlinePassed):
        send(service, seal_message(behind, keys()))


def test_messages_that_come_twice(service: str) -> None:
    """A message that somebody sends again is refused; a write that is tried again is done once."""
    wire = seal_message(message(create="once", idempotency="a" * 32), keys())
    made = send(service, wire).outcomes[0].result()
    with pytest.raises(Replayed):
        send(service, wire)
    again = seal_message(message(create="once", idempotency="a" * 32), keys())
    assert send(service, again).outcomes[0].result() == made
    assert site.ServerModel.objects.count() == 1


def test_keys(served: dict[str, Any], service: str) -> None:
    """Keys that are rotated in are taken beside the old ones; others are not."""

    def ask(**conf: Any) -> int:
        with alias("rotated", **{**served, **conf}):
            return ClientModel.objects.using("rotated").count()

    assert ask(KEYS=SECRETS, KEY="k1") == 0
    # It speaks for one principal alone.
    assert ask(KEYS=SECRETS, KEY="k2", PRINCIPAL="ada") == 0
    with pytest.raises(PermissionDenied):
        ask(KEYS=SECRETS, KEY="k2")
    with pytest.raises(UnknownKey):
        ask(KEYS={"k0": SECRETS["k1"]}, KEY="k0")
    with pytest.raises(BadSignature):
        ask(KEYS={"k1": SECRETS["k2"]}, KEY="k1")


def test_other_versions(service: str) -> None:
    """A message of another version is refused, whatever it holds."""
    with pytest.raises(UnknownVersion):
        send(service, sealed('{"v":0,"query":[]}', keys(), "k1", None))
    with pytest.raises(RemoteError):
        send(service, "v0.what.an.older.client.sends")


def test_fields_that_are_gone(service: str) -> None:
    """A field that the service no longer has is named by the error, in a read and in a write."""
    with pytest.raises(FieldNotAllowed, match="gone"):
        ClientModel.objects.filter(gone=1).count()
    tree = nodes.Tree("rpc_site.ServerModel", (), nodes.Op("rows"), ("id", "gone"))
    answer = send(service, seal_message(message(trees=(tree,)), keys()))
    with pytest.raises(FieldNotAllowed, match="gone"):
        answer.outcomes[0].result()
    write = nodes.Tree("rpc_site.ServerModel", (), nodes.Op("create", (), {"gone": 1}))
    answer = send(service, seal_message(message(trees=(write,), idempotency="b" * 32), keys()))
    with pytest.raises(FieldNotAllowed, match="gone"):
        answer.outcomes[0].result()


def test_ten_thousand_rows(service: str) -> None:
    """More rows than allowed are an error, not a part of them; as many as allowed arrive."""
    site.Station.objects.bulk_create([site.Station(name=f"{n}") for n in range(10_000)])
    with pytest.raises(TooManyRows):
        list(Station.objects.order_by("pk"))
    assert len(Station.objects.order_by("pk")[:1000]) == 1000
    assert Station.objects.count() == 10_000
