"""The client for PHP and the Django view, between them a real server."""

from __future__ import annotations

import datetime
import json
import shutil
import subprocess
from decimal import Decimal
from typing import Any

import pytest
from django.conf import settings

from tests.faults.fix_servers import leave_out
from tests.rpc.site.models import Dish, Kinds, Label, Order, Station, Waiter
from tests.support.limits import PATIENCE
from tests.support.rpc_services import SERVICES
from tests.support.script import ROOT

# tests/rpc/test_without_django.py has the short form.
pytestmark = [pytest.mark.process, pytest.mark.load]


@pytest.fixture
def rows() -> None:
    """A few dishes, labels and orders."""
    grill = Station.objects.create(name="grill")
    moment = datetime.datetime(2026, 5, 1, tzinfo=datetime.UTC)
    soup = Dish.objects.create(name="soup", price=4, station=grill, created=moment, data={"a": 1.5})
    Dish.objects.create(name="ærø ☃", price=20, station=grill)
    Dish.objects.create(name="tea", price=1)
    soup.labels.add(Label.objects.create(word="hot"))
    for login in ("ada", "bob"):
        Order.objects.create(dish=soup, waiter=Waiter.objects.create(login=login))


def ask() -> dict[str, Any]:
    """Run the script; return what it says, by its own words."""
    php = shutil.which("php")
    if php is None:
        leave_out("there is no PHP")
    keys = settings.PGBACKEND_RPC["KEYS"]
    file = ROOT / "pgbackend" / "rpc" / "php" / "pgbackend_rpc.php"
    with SERVICES["http"](real=True) as service, service.running():
        done = subprocess.run(
            [
                *(php, "-d", "display_errors=1", "-d", "error_reporting=-1"),
                *(str(ROOT / "tests" / "rpc" / "site" / "ask.php"), str(file)),
                *(service.settings()["URL"], keys["k1"], keys["k2"]),
            ],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    said = dict(json.loads(line) for line in done.stdout.splitlines())
    return said


def test_php(rows: None) -> None:
    """Reads, writes, messages of several calls, values and refusals are those of the ORM here."""
    said = ask()
    names = ["soup", "tea", "ærø ☃"]
    assert {name: said.pop(name) for name in ("filter", "exclude", "or", "not", "in", "flat")} == {
        "filter": ["soup"],
        "exclude": ["soup", "ærø ☃"],
        "or": ["tea"],
        "not": ["soup", "ærø ☃"],
        "in": ["tea", "ærø ☃"],
        "flat": names,
    }
    assert said.pop("slice") == [
        {"name": "ærø ☃", "price": "20.00"},
        {"name": "soup", "price": "4.00"},
    ]
    assert (said.pop("count"), said.pop("exists")) == (3, [True, False])
    assert said.pop("aggregate") == {"most": "20.00", "n": 3}
    assert said.pop("annotate") == [{"name": "soup", "n": 2}]
    assert said.pop("row") == ["grill", ["hot"], {"a": 1.5}]
    assert (said.pop("no station"), said.pop("first"), said.pop("nothing")) == (None, "tea", None)
    assert (said.pop("subquery"), said.pop("in_bulk")) == (["soup"], ["soup"])
    assert said.pop("dates") == ["2026-01-01"]

    assert said.pop("create") == [
        "pie",
        "9.50",
        {"a": [1.5, None, "x"]},
        "2026-01-02T00:04:05+00:00 000006",
    ]
    assert (said.pop("update"), said.pop("updated")) == (1, "19.00")
    pie = Dish.objects.get(name="pie")
    assert pie.created == datetime.datetime(2026, 1, 2, 0, 4, 5, 6, datetime.UTC)
    assert (pie.price, pie.data) == (Decimal("19.00"), {"a": [1.5, None, "x"]})
    assert said.pop("labels") is None
    assert pie.labels.get().word == "hot"
    assert said.pop("get_or_create") == [False, True]
    assert (said.pop("bulk_create"), said.pop("delete")) == (2, 2)
    assert (said.pop("renamed"), said.pop("total")) == ("marmalade", "12.00")
    assert (said.pop("inside"), said.pop("refused")) == (["soup", 2, 1], ["Closed."])
    assert said.pop("wrong") == ["blank", "min_value", 0]
    assert said.pop("refers") is True
    assert Order.objects.get(dish__name="cake").count == 2
    assert said.pop("atomic")[0] in ("ValidationError", "IntegrityError")
    assert said.pop("twice") is True
    assert sorted(Dish.objects.exclude(name__in=names).values_list("name", flat=True)) == [
        *("cake", "marmalade", "once", "pie"),
    ]

    kinds = Kinds.objects.get()
    found = said.pop("kinds")
    default = Kinds()
    assert (found["integer"], found["boolean"], found["maybe"]) == (-(2**60), True, None)
    assert (found["text"], found["real"]) == (default.text, 0.1)
    assert (found["exact"], found["day"]) == ("1.1000000000", "2026-01-02")
    assert found["json"] == default.json
    assert said.pop("bytes") == ["00ff", True]
    assert said.pop("sent") == [
        *("ærø ☃ 𝄞", 2**63 - 1, 0.1, "12345678-1234-5678-1234-567812345678"),
        *("-1", "2017-01-01", "00ff"),
    ]
    assert (kinds.text, kinds.integer, bytes(kinds.binary)) == ("ærø ☃ 𝄞", 2**63 - 1, b"\x00\xff")
    assert (kinds.span, kinds.day) == (
        datetime.timedelta(microseconds=-1),
        datetime.date(2017, 1, 1),
    )

    assert said.pop("own orders") == 2
    assert said == {
        "unknown": ["DoesNotExist", True],
        "many": ["MultipleObjectsReturned", True],
        "invalid": ["ValidationError", True],
        "taken": ["IntegrityError", True],
        "hidden": ["FieldNotAllowed", True],
        "hidden model": ["NotExposed", True],
        "method": ["MethodNotAllowed", True],
        "another": ["PermissionDenied", True],
        "wrong key": ["BadSignature", False],
        "nobody": ["Unavailable", True],
    }
