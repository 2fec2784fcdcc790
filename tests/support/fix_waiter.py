"""The example project's second site, beside the first."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.support.fix_uvicorn import Process, Site

WAITER = ("-m", "proj.waiter.serve")

SETTINGS = {"DJANGO_SETTINGS_MODULE": "proj.waiter.settings"}

# A role that can send messages, and nothing else: see docs/howto/rpc-transports.md.
ROLE = "pgbackend_tests_waiter"


def terminal_environ(site: Site) -> dict[str, str]:
    """Return the environment of the terminal, whose role may use one table of the kitchen's."""
    site.all(f"DROP ROLE IF EXISTS {ROLE}")
    site.all(f"CREATE ROLE {ROLE} LOGIN PASSWORD 'tests'")
    site.all(f"GRANT INSERT, SELECT, DELETE ON pgpubsub_notification TO {ROLE}")
    address = urlsplit(site.dsn)
    place = address.netloc.rpartition("@")[2]
    url = address._replace(netloc=f"{ROLE}:tests@{place}").geturl()
    return {**SETTINGS, "DATABASE_URL": url}


def drop_role(site: Site) -> None:
    site.all(f"DROP OWNED BY {ROLE}")
    site.all(f"DROP ROLE {ROLE}")


@pytest.fixture(scope="module")
def terminal(served_site: Site) -> Iterator[Process]:
    """The waiter's terminal, of the kitchen of `site`."""
    process = served_site.serve(*WAITER, **terminal_environ(served_site))
    yield process
    assert process.terminate() == 0, process.output
    assert process.trouble() == [], process.output
    drop_role(served_site)
