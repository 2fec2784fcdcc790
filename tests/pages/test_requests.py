"""The examples that are views, middleware or what serves them, in requests."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
from django.db import connection
from django.http import HttpRequest, JsonResponse
from django.test import Client, override_settings
from django.urls import path

from pgbackend import bridged, is_bridged
from tests.pages.examples import Example, example
from tests.support.client import serving
from tests.support.kitchen import make_dish, make_order
from tests.support.loop import ThreadStarts
from tests.support.server import Server

pytestmark = pytest.mark.usefixtures("kitchen")

VIEWS = [
    example("README.md", "async with transaction.atomic()"),
    example("docs/tutorial/before-and-after.md", "async with transaction.atomic()"),
]
RECEIPT = example("docs/explanation/requests.md", "def receipt")
CUSTOMERS = example("docs/explanation/requests.md", "def customers")
WHERE = example("docs/howto/development-server.md", "def where")
DISHES = example("docs/reference/requests.md", "def dishes")
SYNC_ON_LOOP = example("docs/reference/requests.md", "PGBACKEND_SYNC_ON_LOOP")
POLICY = example("docs/howto/tenants-and-rls.md", "CREATE POLICY", "sql")
FOR_A_TRANSACTION = example("docs/howto/tenants-and-rls.md", "SET LOCAL ROLE")
FOR_THE_REQUEST = example("docs/howto/tenants-and-rls.md", "SET ROLE")

# The role of the page, by a name that a server of somebody's does not have.
ROLE = "pgbackend_tests_tenant"


@pytest.mark.parametrize("view", VIEWS, ids=str)
async def test_the_view_after(view: Example) -> None:
    """The view takes the portions, without a thread."""
    await make_order(dish=await make_dish())
    urls = (path("<int:pk>/<int:quantity>/", view.run().take),)
    with serving(ROOT_URLCONF=urls) as client, ThreadStarts() as starts:
        answer = await client.get("/1/2/")
    assert answer.json() == {"left": 3, "orders": 1, "dishes": 1}
    assert starts.names == []


async def test_receipt(server: Server) -> None:
    """A view reads lazy relations and the user, and writes into the session."""
    await make_order(dish=await make_dish())
    urls = (path("<int:pk>/", RECEIPT.run().receipt),)
    # Without the templates of the application, whose page of 404 links to its others.
    with serving(ROOT_URLCONF=urls, TEMPLATES=[]) as client:
        answer = await client.get("/1/")
        assert answer.json() == {"customer": "Ada", "dishes": ["Soup"], "for": ""}
        assert (await client.get("/2/")).status == 404
    assert server.one("SELECT count(*) FROM django_session") == 1


async def test_customers() -> None:
    """Tasks that a view starts are bridged by the decorator."""
    for name in ("Ada", "Grace"):
        await make_order(name)
    with serving(ROOT_URLCONF=(path("", CUSTOMERS.run().customers),)) as client:
        assert (await client.get("/")).json() == {"names": ["Ada", "Grace"]}


async def test_where() -> None:
    """The view tells the bridge from its absence."""
    urls = (path("", WHERE.run().where),)
    with serving(ROOT_URLCONF=urls) as client:
        assert (await client.get("/")).json() == {"bridged": True}
    with serving(ROOT_URLCONF=urls, PGBACKEND_IMPLICIT_IO=False) as client:
        assert (await client.get("/")).json() == {"bridged": False}


def test_where_under_wsgi() -> None:
    """Under WSGI it tells of none."""
    with override_settings(ROOT_URLCONF=(path("", WHERE.run().where),), MIDDLEWARE=[]):
        assert Client().get("/").json() == {"bridged": False}


async def test_one_synchronous_view_on_the_loop() -> None:
    """The decorated view runs without a thread, and what stands above it still decides."""
    await make_dish()
    urls = (path("", DISHES.run().dishes),)
    with serving(ROOT_URLCONF=urls) as client, ThreadStarts() as starts:
        (dish,) = (await client.get("/")).json()["dishes"]
        refused = await client.open("/", method="TRACE").run()
    assert (dish["name"], dish["price"]) == ("Soup", "6.50")
    assert refused.status == 405
    assert starts.names == []


async def test_all_synchronous_views_on_the_loop() -> None:
    """The setting puts synchronous views on the loop."""

    def where(request: HttpRequest) -> JsonResponse:
        return JsonResponse({"bridged": is_bridged()})

    urls = (path("", where),)
    with serving(ROOT_URLCONF=urls) as client:
        assert (await client.get("/")).json() == {"bridged": False}
    with serving(ROOT_URLCONF=urls, **SYNC_ON_LOOP.settings()) as client:
        assert (await client.get("/")).json() == {"bridged": True}


@pytest.fixture
def policy(server: Server) -> Iterator[None]:
    """The page's policy, and what its role may besides."""
    server.all(f"DROP ROLE IF EXISTS {ROLE}")
    text = POLICY.text.replace("mydatabaseuser", server.conn.info.user)
    server.all(text.replace("tenant_app", ROLE))
    yield
    server.all(
        f"DROP POLICY tenant ON kitchen_customer;"
        f" ALTER TABLE kitchen_customer DISABLE ROW LEVEL SECURITY;"
        f" DROP OWNED BY {ROLE}; DROP ROLE {ROLE}"
    )


@pytest.mark.usefixtures("policy")
@pytest.mark.parametrize("middleware", [FOR_A_TRANSACTION, FOR_THE_REQUEST], ids=str)
async def test_tenants(
    server: Server, middleware: Example, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request sees the rows of its tenant, and none without one; nothing stays in force."""
    from kitchen.models import Customer

    @bridged
    def user() -> str:
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_user")
            return str(cursor.fetchone()[0])

    async def customers(request: HttpRequest) -> JsonResponse:
        assert await user() == ROLE
        return JsonResponse({"names": [each.name async for each in Customer.objects.all()]})

    async def failing(request: HttpRequest) -> JsonResponse:
        await Customer.objects.acreate(name=request.headers["X-Tenant"])
        raise ValueError("after it has written")

    for name in ("Ada", "Grace"):
        await make_order(name)
    text = middleware.text.replace("tenant_app", ROLE)
    code = Example(middleware.page, middleware.line, text).run("tenants_of_the_page")
    monkeypatch.setitem(sys.modules, code.__name__, code)
    urls = (path("", customers), path("failing/", failing))
    middlewares = [f"{code.__name__}.tenant_middleware"]
    with serving(ROOT_URLCONF=urls, MIDDLEWARE=middlewares) as client:
        assert (await client.get("/", x_tenant="Ada")).json() == {"names": ["Ada"]}
        assert (await client.get("/")).json() == {"names": []}
        assert (await client.get("/failing/", x_tenant="Hedy")).status == 500
    # The transaction of the request is rolled back; that of the statement is not.
    written = server.one("SELECT count(*) FROM kitchen_customer WHERE name = 'Hedy'")
    assert written == (middleware is FOR_THE_REQUEST)
    assert await user() == server.conn.info.user
