"""Passwords are in no frame's locals of what a failing connection raises."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from django.db import connections
from django.db.backends.signals import connection_created
from django.test import RequestFactory, override_settings
from django.views.debug import ExceptionReporter

from pgbackend import bridged, transaction
from pgbackend.pool.passwords import forget_passwords
from pgbackend.wrapper.opening import note_closed
from tests.models import Author
from tests.support.server import Server
from tests.support.wrapper import AddAlias

CANARY = "s3cret-canary-9"


@pytest.fixture
def role(server: Server) -> Iterator[str]:
    """A role whose password is the canary."""
    server.all(f"CREATE ROLE canary LOGIN SUPERUSER PASSWORD '{CANARY}'")
    yield "canary"
    server.wait_for_backends(0)
    server.all("DROP ROLE canary")


def fails(connection: Any, **kwargs: Any) -> None:
    if connection.alias.startswith("added"):
        raise ValueError("the receiver fails")


def fails_in_the_server(connection: Any, **kwargs: Any) -> None:
    if connection.alias.startswith("added"):
        with connection.cursor() as cursor:
            cursor.execute("SET ROLE nobody_there")


FAILURES: dict[str, dict[str, Any]] = {
    "a receiver": {"receiver": fails},
    "SQL of a receiver": {"receiver": fails_in_the_server},
    "assume_role": {"options": {"assume_role": "nobody_there"}},
    "a pool's key": {"options": {"pool": {"max_sizes": 3}}},
    "a pool's value": {"options": {"pool": {"max_size": -3}}},
    "a pool's sizes": {"options": {"pool": {"max_size": 3, "min_size": 4}}},
    "a pool's type": {"options": {"pool": "big"}},
    "CONN_MAX_AGE": {"CONN_MAX_AGE": 5, "options": {"pool": True}},
    "isolation_level": {"options": {"isolation_level": 77}},
    "no such database": {"NAME": "nodb"},
    "nobody listens": {"PORT": 1},
    "an unknown parameter": {"options": {"nonsense_param": "1"}},
    "no NAME": {"NAME": ""},
    "a long NAME": {"NAME": "x" * 80},
    "a wrong option": {"options": {"turn_timeout": "x"}},
    "TIME_ZONE": {"TIME_ZONE": "Nowhere/Here"},
    "a wrong password": {"PASSWORD": CANARY + "!"},
    "in a service's place": {"PASSWORD": "", "options": {"password": CANARY, "sslmode": "x"}},
    "a hook of the pool": {"options": {"pool": {"check": None, "reset": "no function"}}},
    "server's time": {"options": {"options": "-c statement_timeout=x"}},
}


def shown(value: Any) -> str:
    """Return the repr of a local, as error trackers get it: a queryset's is a query, and fails."""
    try:
        return repr(value)
    except Exception:
        return ""


def leaks(error: BaseException) -> list[str]:
    """Return the frames of *error*, and of what led to it, with the canary in a local."""
    found: list[str] = []
    errors: list[BaseException | None] = [error]
    seen: set[int] = set()
    while errors:
        each = errors.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        errors += [each.__cause__, each.__context__]
        traceback = each.__traceback__
        while traceback is not None:
            code = traceback.tb_frame.f_code
            found += [
                f"{code.co_filename}:{traceback.tb_lineno} {code.co_qualname} {name}"
                for name, value in traceback.tb_frame.f_locals.items()
                if CANARY in shown(value)
            ]
            traceback = traceback.tb_next
    return found


def page(error: BaseException) -> str:
    """Return Django's debug page for *error*."""
    with override_settings(DEBUG=True, ALLOWED_HOSTS=["testserver"], ROOT_URLCONF=__name__):
        reporter = ExceptionReporter(
            RequestFactory().get("/"), type(error), error, error.__traceback__
        )
        return str(reporter.get_traceback_html())


async def in_a_thread(alias: str) -> None:
    failed: list[BaseException] = []

    def run() -> None:
        try:
            connections[alias].ensure_connection()
        except BaseException as error:
            failed.append(error)
        finally:
            connections.close_all()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


async def pinned(alias: str) -> None:
    async with transaction.pinned(alias):
        pass


USES: dict[str, Callable[[str], Awaitable[Any]]] = {
    "a-method": lambda alias: Author.objects.using(alias).acount(),
    "bridged": lambda alias: bridged(lambda: connections[alias].cursor())(),
    "pinned": pinned,
    "thread": in_a_thread,
}


async def raised(use: str, alias: str) -> BaseException:
    """Return what the use of an alias raises; no test's frame is in its traceback."""
    try:
        await USES[use](alias)
    except Exception as error:
        return error
    return pytest.fail("nothing was raised")


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("failure", FAILURES)
async def test_no_password_in_locals(
    failure: str, use: str, add_alias: AddAlias, role: str, server: Server
) -> None:
    """No frame of what is raised has the password in a local, nor has the debug page."""
    changes = {"USER": role, "PASSWORD": CANARY, **FAILURES[failure]}
    options, receiver = changes.pop("options", {}), changes.pop("receiver", None)
    if use == "thread" and isinstance(options.get("pool"), dict):
        options = {**options, "pool": {"timeout": 1.0, **options["pool"]}}
    alias = add_alias(options, **changes)
    # As if it had had no pool before.
    note_closed(alias)
    if receiver is not None:
        connection_created.connect(receiver)
    try:
        error = await raised(use, alias)
    finally:
        if receiver is not None:
            connection_created.disconnect(receiver)
        # What ends the test makes a wrapper, and closes its pool.
        connections.settings[alias] = {**connections.settings["default"]}
        if hasattr(connections._connections, alias):
            del connections[alias]
    assert leaks(error) == []
    assert CANARY not in page(error)


async def test_cancelled_while_connecting(add_alias: AddAlias, role: str) -> None:
    """Nor has a cancellation that comes while a connection is being opened."""
    alias = add_alias({}, USER=role, PASSWORD=CANARY)
    found: list[Any] = []
    for steps in range(6):
        task = asyncio.create_task(Author.objects.using(alias).acount())  # type: ignore[arg-type]
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        found += await asyncio.gather(task, return_exceptions=True)
    # On a busy machine the server may have answered before the last of them.
    errors = [each for each in found if isinstance(each, asyncio.CancelledError)]
    assert len(errors) > 2
    assert [leaks(each) for each in errors] == [[]] * len(errors)


def test_frames_of_applications_are_left() -> None:
    """An application's own frames keep their locals, whatever is in them."""

    def application() -> None:
        password = {"password": CANARY}
        raise KeyError(len(password))

    with pytest.raises(KeyError) as caught:
        application()
    forget_passwords(caught.value, [CANARY])
    assert len(leaks(caught.value)) >= 1


urlpatterns: list[Any] = []
