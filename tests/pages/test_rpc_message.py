"""The pages about keys, HTTP clients and PHP, on the service of the tests of RPC."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from django.test import Client as Browser
from django.test import override_settings

from pgbackend import bridged
from pgbackend.rpc.protocol.answers import open_answer
from pgbackend.rpc.protocol.errors import ERRORS, DoesNotExist, PermissionDenied
from pgbackend.rpc.protocol.keys import Keys
from pgbackend.rpc.protocol.limits import Limits
from pgbackend.rpc.protocol.messages import message_of, seal_message
from pgbackend.rpc.protocol.names import ENDS, OPERATIONS
from pgbackend.rpc.protocol.nodes import Op, Tree
from pgbackend.rpc.protocol.reading import TAGS
from pgbackend.rpc.protocol.scalars import DECODERS
from pgbackend.rpc.protocol.trees import decode_tree
from pgbackend.rpc.protocol.values import decode
from pgbackend.rpc.server.running import handle
from pgbackend.rpc.server.settings import service
from pgbackend.rpc.transports.local import LocalTransport
from tests.faults.fix_servers import leave_out
from tests.pages.examples import ROOT, Example, blocks_of, example
from tests.rpc.echo import SECRETS, serving
from tests.rpc.site.models import Dish, Order, Station, Waiter

SERVICE_KEYS = example("docs/howto/rpc-keys.md", "PGBACKEND_RPC")
CLIENT_KEYS = example("docs/howto/rpc-keys.md", '"KEYS": {"till-2026-01"')
NEW_KEYS = example("docs/howto/rpc-keys.md", "RPC_KEY_TILL_NEW")

PAGE = "docs/howto/rpc-rest-clients.md"
VIEW = example(PAGE, "rpc_view")
CLIENT = example(PAGE, "HttpTransport(")
QUERYSETS = example(PAGE, "async def report")
ENDINGS = example(PAGE, "client.gather")
NESTED = example(PAGE, "delayed()")
FAILURES = example(PAGE, "dish_or_none")
SHELL = example(PAGE, "openssl", "shell")

MESSAGE = (ROOT / "docs/reference/rpc-message.md").read_text()


@pytest.fixture(autouse=True)
def environ(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys in the environment."""
    for number, name in enumerate(("TILL", "TILL_NEW", "REPORTS", "SHOP")):
        monkeypatch.setenv(f"RPC_KEY_{name}", str(number) * 32)


@pytest.fixture
def rows() -> None:
    """A few dishes, and an order."""
    grill = Station.objects.create(name="grill")
    for name, price in (("soup", 4), ("fish", 20), ("tea", 9)):
        Dish.objects.create(name=name, price=price, station=grill)
    waiter = Waiter.objects.create(login="ada")
    Order.objects.create(dish=Dish.objects.get(name="soup"), waiter=waiter)


def here(one: Example) -> Example:
    """Return the example for the models of the tests' service."""
    return dataclasses.replace(one, text=one.text.replace("kitchen.", "rpc_site."))


def client() -> ModuleType:
    """Return the module of the page's client, whose transport and key are the tests'."""
    module = here(CLIENT).run()
    module.client.close()
    module.client.transport = LocalTransport()
    module.client.keys, module.client.principal = service().keys, "chef"
    return module


def test_keys() -> None:
    """Messages of both keys of a client are taken at each step, within their principals."""
    ours = Keys.from_settings(SERVICE_KEYS.settings()["PGBACKEND_RPC"])
    old = Keys.from_settings(CLIENT_KEYS.settings()["DATABASES"]["rpc"])
    new = Keys.from_settings(NEW_KEYS.settings()["DATABASES"]["rpc"])
    assert (old.current, new.current) == ("till-2026-01", "till-2026-07")
    assert old.current in ours
    # At step 2 both are the client's.
    assert old.current in new
    assert ours.principal("till-2026-01", "anybody") == "anybody"
    assert ours.principal("reports-2026-01", None) == "reports"
    with pytest.raises(PermissionDenied):
        ours.principal("reports-2026-01", "till")


@pytest.mark.process
def test_a_secret_is_made() -> None:
    """What the page says makes a secret that is long enough."""
    command = example("docs/howto/rpc-keys.md", "token_hex", "shell").text.strip()
    words = command.replace("python", sys.executable, 1)
    made = subprocess.run(words, shell=True, capture_output=True, text=True, check=True)
    assert Keys("k", {"k": made.stdout.strip()}).current == "k"


def test_the_view() -> None:
    """The view answers a POST, and nothing else."""
    module = VIEW.run()
    with override_settings(ROOT_URLCONF=module):
        assert Browser().get("/rpc").status_code == 405
        keys = service().keys
        message = message_of([Tree("rpc_site.Dish", end=Op("count"))], timeout=9, principal="chef")
        text = seal_message(message, keys)
        response = Browser(enforce_csrf_checks=True).post("/rpc", text, content_type="text/plain")
    assert response.status_code == 200
    assert open_answer(response.content, keys, None, message.id).outcomes[0].result() == 0


async def test_querysets(rows: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows in synchronous code, and in asynchronous code."""
    names = vars(client())
    module = await bridged(here(QUERYSETS).run)(**names)
    assert await module.report() == 2
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[:2]] == ["soup", "tea"]
    assert lines[2:] == ["soup", "tea"]


def test_ends(rows: None) -> None:
    """Ends alone, together, and one with the result of another."""
    names = vars(client())
    names["cheap"] = names["dishes"].filter(price__lt=10)
    module = here(ENDINGS).run(**names)
    assert (module.number, module.names, module.dish.name) == (2, ["soup", "tea"], "fish")
    assert module.order.tree.end.kwargs["dish"].path == ("id",)


def test_nested(rows: None) -> None:
    """A queryset as a value, an aggregate, and arithmetic."""
    module = here(NESTED).run(**vars(client()))
    assert [(row.name, row.orders_there) for row in module.waiting.result()] == [("soup", 1)]
    assert module.raised.result() == 1
    assert Dish.objects.get(name="soup").price == 5


def test_failures(rows: None, capsys: pytest.CaptureFixture[str]) -> None:
    """A row that is not there is None; another error is said."""
    module = FAILURES.run()
    dishes = client().dishes
    assert module.dish_or_none(dishes, 0) is None
    assert module.dish_or_none(dishes, Dish.objects.get(name="tea").pk).name == "tea"
    with pytest.raises(ERRORS["FieldNotAllowed"]):
        module.dish_or_none(dishes.filter(recipe="x"), 1)
    assert "FieldNotAllowed" in capsys.readouterr().out
    assert ERRORS["DoesNotExist"] is DoesNotExist


@pytest.mark.process
def test_the_shell(rows: None) -> None:
    """What the shell would send is a message that the service answers."""
    if shutil.which("openssl") is None:
        pytest.skip("left out: there is no openssl")
    keys = service().keys
    text = SHELL.text.replace("reports-2026-01", "k1").replace("kitchen.", "rpc_site.")
    text = text.replace('"principal":"reports"', '"principal":"chef"')
    secret = "the first secret of the tests, with 32 bytes or more"
    made = subprocess.run(
        ["bash", "-ec", 'curl() { printf "%s" "$2"; }\n' + text],
        env={**os.environ, "RPC_KEY_REPORTS": secret, "RPC_URL": "http://127.0.0.1/"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert open_answer(handle(made.stdout), keys).outcomes[0].result() == 3


@pytest.mark.process
def test_php(tmp_path: Path) -> None:
    """The page's PHP runs, one block after the other."""
    php = shutil.which("php")
    if php is None:
        leave_out("there is no PHP")
    blocks = [each.text for each in blocks_of(ROOT / "docs/howto/rpc-php.md", "php")]
    with serving() as server:
        file = ROOT / "pgbackend" / "rpc" / "php" / "pgbackend_rpc.php"
        text = "\n".join(blocks).replace("'pgbackend_rpc.php'", f"'{file}'")
        text = text.replace("'https://kitchen.example/rpc'", f"'{server.url}/rpc'")
        script = tmp_path / "page.php"
        script.write_text(text.replace("'shop-2026-01'", "'k1'") + "\necho 'the end';\n")
        done = subprocess.run(
            [php, "-d", "display_errors=1", str(script)],
            env={**os.environ, "RPC_KEY_SHOP": SECRETS["k1"]},
            capture_output=True,
            text=True,
        )
    assert done.stdout == "Soup\nTea\nthe end", done.stdout + done.stderr


def test_the_reference_has_all_there_is() -> None:
    """Each code, limit, operation, end and tag is in the specification."""
    codes = set(re.findall(r"`([A-Z]\w+)`", MESSAGE.partition("## Codes")[2].partition("## V")[0]))
    assert codes == ERRORS.keys()
    for field in dataclasses.fields(Limits):
        row = re.search(rf"^\| `{field.name}`: .*? \| ([\d,]+)( MiB)? \|", MESSAGE, re.MULTILINE)
        assert row is not None, field.name
        number = int(row[1].replace(",", "")) * (2**20 if row[2] else 1)
        assert number == field.default, field.name
    trees = MESSAGE.partition("## Trees")[2].partition("## Rows")[0]
    for name in OPERATIONS | ENDS:
        assert re.search(rf"\b{name}\b", trees), name
    tags = {f"${name}" for name in re.findall(r"\$([a-z]+)", MESSAGE)}
    assert tags == DECODERS.keys() | TAGS.keys()


def test_the_examples_of_the_reference() -> None:
    """The tree and the rows of the page are read as trees and rows."""
    tree, rows = (json.loads(each.text) for each in blocks_of(_message_page(), "json"))
    assert decode_tree(tree).model == "kitchen.Dish"
    assert decode(rows).rows[0] == [1, "Soup", 7, [7]]


def _message_page() -> Path:
    return ROOT / "docs" / "reference" / "rpc-message.md"
