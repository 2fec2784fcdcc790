"""Security: TLS to a server whose certificate is checked, and certificates instead of passwords."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
from django.db import OperationalError, transaction

from tests.faults.fix_servers import Cluster, wait_until
from tests.models import Author
from tests.support.limits import PATIENCE
from tests.support.server import NAME
from tests.support.wrapper import PID, AddAlias, avalue

pytestmark = pytest.mark.process

# Logs in by its certificate alone.
CERTIFIED = "certified"

ENCRYPTED = (
    "SELECT a.pid, s.ssl, s.client_serial FROM pg_stat_activity a JOIN pg_stat_ssl s USING (pid)"
    " WHERE a.application_name = %s"
)


@dataclass
class Site:
    """A server with a certificate for localhost, and what its clients need."""

    server: Cluster
    # Of those who signed the server's certificate, and of others.
    authority: Path
    stranger: Path
    # A client's own, with its key.
    certificate: Path
    key: Path

    def settings(self, **changes: Any) -> dict[str, Any]:
        """Return settings of an alias that asks for everything."""
        return {
            "NAME": "postgres",
            "USER": self.server.server.user,
            "PASSWORD": self.server.server.password,
            "HOST": "localhost",
            "PORT": self.server.server.port,
            **changes,
        }

    def options(self, **changes: Any) -> dict[str, Any]:
        """Return libpq's options of such an alias."""
        return {
            # The server listens on IPv4 only; the name is what is checked.
            "hostaddr": "127.0.0.1",
            "sslmode": "verify-full",
            "sslrootcert": str(self.authority),
            "pool": {"max_size": 4},
            **changes,
        }


@pytest.fixture(scope="module")
def site(tls_server: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A server with TLS on, and certificates made for it."""
    folder = tmp_path_factory.mktemp("certificates")
    authority, stranger = trustme.CA(), trustme.CA()
    mine = authority.issue_cert("client.example", common_name=CERTIFIED)
    site = Site(tls_server, *(folder / name for name in ("ca", "other", "client", "client.key")))
    authority.cert_pem.write_to_path(site.authority)
    stranger.cert_pem.write_to_path(site.stranger)
    mine.cert_chain_pems[0].write_to_path(site.certificate)
    mine.private_key_pem.write_to_path(site.key)
    site.key.chmod(0o600)

    data = tls_server.data
    own = authority.issue_cert("localhost")
    own.cert_chain_pems[0].write_to_path(data / "server.crt")
    own.private_key_pem.write_to_path(data / "server.key")
    authority.cert_pem.write_to_path(data / "root.crt")
    tls_server.own(*(data / name for name in ("server.crt", "server.key", "root.crt")))
    rules = data / "pg_hba.conf"
    rules.write_text(f"hostssl all {CERTIFIED} 127.0.0.1/32 cert\n" + rules.read_text())
    tls_server.all(f"CREATE ROLE {CERTIFIED} LOGIN")
    tls_server.all("ALTER SYSTEM SET ssl_ca_file = 'root.crt'")
    tls_server.all("ALTER SYSTEM SET ssl = on")
    tls_server.all("SELECT pg_reload_conf()")
    wait_until(
        lambda: tls_server.one("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"),
        "the server does not speak TLS",
    )
    return site


async def test_security_every_pooled_connection_is_encrypted(
    site: Site, add_alias: AddAlias
) -> None:
    """With sslmode=verify-full each connection of the pool is, one that replaces another too."""
    alias = add_alias(site.options(), **site.settings())
    barrier = asyncio.Barrier(4)

    async def hold() -> None:
        async with transaction.atomic(alias):
            await avalue(PID, alias)
            await barrier.wait()

    await asyncio.gather(*(hold() for _ in range(4)))
    before = site.server.all(ENCRYPTED, NAME)
    assert [encrypted for _, encrypted, _ in before] == [True] * 4
    for pid, *_ in before:
        assert site.server.one("SELECT pg_terminate_backend(%s, 30000)", pid)
    await asyncio.gather(*(hold() for _ in range(4)))
    after = site.server.all(ENCRYPTED, NAME)
    assert [encrypted for _, encrypted, _ in after] == [True] * 4
    assert {pid for pid, *_ in before}.isdisjoint(pid for pid, *_ in after)


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        # An address is no name in the certificate.
        ({"HOST": "127.0.0.1"}, {}, r'certificate for "localhost".* does not match host name'),
        ({"HOST": "db.example"}, {}, r'certificate for "localhost".* does not match host name'),
        ({}, {"sslrootcert": "stranger"}, "certificate verify failed"),
        ({}, {"sslrootcert": "/nowhere/ca"}, 'root certificate file "/nowhere/ca" does not exist'),
    ],
    ids=["address", "other name", "other authority", "no authority"],
)
async def test_security_a_server_that_is_not_the_one(
    site: Site,
    add_alias: AddAlias,
    changes: dict[str, Any],
    options: dict[str, Any],
    words: str,
) -> None:
    """verify-full refuses a wrong host, or who signed for it, at once and in libpq's words."""
    if options.get("sslrootcert") == "stranger":
        options = {"sslrootcert": str(site.stranger)}
    alias = add_alias(site.options(**options), **site.settings(**changes))
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(OperationalError, match=words):
            await Author.objects.using(alias).acount()
    assert site.server.all(ENCRYPTED, NAME) == []


async def test_security_client_certificate(site: Site, add_alias: AddAlias) -> None:
    """A client certificate logs in without a password; without one the server refuses."""
    who = site.settings(USER=CERTIFIED, PASSWORD="")
    files = {"sslcert": str(site.certificate), "sslkey": str(site.key)}
    alias = add_alias(site.options(**files), **who)
    assert await avalue("SELECT current_user", alias) == CERTIFIED
    ((_, encrypted, certificate),) = site.server.all(ENCRYPTED, NAME)
    assert encrypted
    assert certificate is not None
    with pytest.raises(OperationalError, match="requires a valid client certificate"):
        await avalue("SELECT 1", add_alias(site.options(), **who))
