"""The PostgreSQL of a run, and what the run leaves on it."""

import fcntl
import hashlib
import hmac
import os
import re
import shutil
import subprocess
import tempfile
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from psycopg import sql

from proj import postgres

# Settings of a server whose data nobody needs after a crash: it writes no more than it has to.
THROWAWAY = {
    "max_connections": 200,
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "wal_level": "minimal",
    "max_wal_senders": 0,
    "max_wal_size": "1GB",
    "checkpoint_timeout": "1h",
}

# A file system in memory, where Linux has one, and the bytes that have to be free there: two
# servers at once keep up to 1 GB of WAL each, and their databases.
MEMORY = Path("/dev/shm")
ROOM = 8 * 2**30


def in_memory(memory: Path = MEMORY, room: int = ROOM) -> Path | None:
    """Return where folders of throwaway servers belong: *memory*, or None where *room* is not free.

    To empty two tables a server makes and removes two dozen files, which takes five times as much
    of its CPU on ext4. Remove what runs that were killed have left there, since it takes memory.
    """
    for folder in memory.glob("pgbackend-*"):
        if _is_left(folder):
            shutil.rmtree(folder, ignore_errors=True)
    if not os.access(memory, os.W_OK) or shutil.disk_usage(memory).free < room:
        return None
    return memory


def _is_left(folder: Path) -> bool:
    """Return whether *folder* is an hour old, and no process has the lock of a server in it."""
    try:
        locks = [*folder.glob("users.lock"), *folder.glob("*/users.lock")]
        if not locks or folder.stat().st_mtime > time.time() - 3600:
            return False
        for lock in locks:
            with open(lock, "r+") as users:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        # The folder is another user's, is gone by now, or its server is used.
        return False
    return True


def make_logins_cheap(server: postgres.Server) -> None:
    """Have the password hashed once, not 4,096 times, which two thirds of connecting are.

    PostgreSQL 16 has a setting for that; all take a password that is hashed already. See
    https://www.postgresql.org/docs/current/catalog-pg-authid.html for its form.
    """
    salt = os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", server.password.encode(), salt, iterations=1)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    of_server = hmac.digest(salted, b"Server Key", "sha256")
    salt, stored, of_server = (b64encode(each) for each in (salt, stored, of_server))
    hashed = b"SCRAM-SHA-256$1:%b$%b:%b" % (salt, stored, of_server)
    with psycopg.connect(server.url, autocommit=True) as conn:
        user = sql.Identifier(server.user)
        conn.execute(sql.SQL("ALTER USER {} PASSWORD {}").format(user, hashed.decode()))


@contextmanager
def serve(dsn: str | None) -> Iterator[str]:
    """Yield the URL of a superuser: *dsn*, or that of a server that lives as long as the block."""
    if dsn:
        yield dsn
        return
    with tempfile.TemporaryDirectory(prefix="pgbackend-suite-", dir=in_memory()) as folder:
        binaries = system_postgres()
        server = postgres.start(Path(folder), THROWAWAY, binaries)
        make_logins_cheap(server)
        try:
            print(f"PostgreSQL: {binaries or 'embedded, without contrib extensions'}", flush=True)
            yield server.url
        finally:
            postgres.stop(Path(folder))


def system_postgres() -> Path | None:
    """Return the folder above the bin/ of the newest PostgreSQL with contrib, if there is one.

    Parts of the suite need extensions and ICU collations that the embedded one lacks.
    """
    patterns = ("usr/lib/postgresql/*", "usr/pgsql-*", "usr/local/pgsql", "opt/homebrew")
    for initdb in sorted(
        (each for pattern in patterns for each in Path("/").glob(f"{pattern}/bin/initdb")),
        key=lambda path: [int(part) for part in re.findall(r"\d+", str(path))],
        reverse=True,
    ):
        sharedir = subprocess.run(
            [initdb.with_name("pg_config"), "--sharedir"], capture_output=True, text=True
        ).stdout.strip()
        if Path(sharedir, "extension", "hstore.control").exists():
            return initdb.parents[1]
    return None


def name_connections() -> str:
    """Give every connection of this process and its children a name of its own."""
    name = os.environ["PGAPPNAME"] = f"pgbackend-suite-{os.getpid()}"
    return name


def leftovers(dsn: str, name: str) -> list[str]:
    """Return the backends of connections called *name* that a minute does not end."""
    with psycopg.connect(dsn, application_name="pgbackend-suite", autocommit=True) as connection:
        deadline = time.monotonic() + 60
        while True:
            rows = connection.execute(
                "SELECT pid, datname, state, query FROM pg_stat_activity"
                " WHERE application_name = %s",
                [name],
            ).fetchall()
            if not rows or time.monotonic() > deadline:
                return [f"Server backend: {row}" for row in rows]
            time.sleep(0.05)
