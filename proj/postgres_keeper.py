"""The process that runs one embedded PostgreSQL and stops it when nobody uses it any more.

`postgres.py` starts it as a script of its own, with the standard library only. It prints notices
and then "ready", or what went wrong.
"""

import fcntl
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

# Where an unprivileged user finds what it cannot reach below root's own folders.
SYSTEM_FOLDER = Path("/var/lib/pgbackend-demo")

START_SECONDS = 60.0
STOP_SECONDS = 30.0

# https://www.postgresql.org/docs/current/server-shutdown.html: the fast one rolls back what is
# open and disconnects the clients, the immediate one leaves recovery to the next start.
FAST_SHUTDOWN = signal.SIGINT
IMMEDIATE_SHUTDOWN = signal.SIGQUIT

# What a Unix socket's address may hold on macOS; Linux allows four bytes more.
SOCKET_PATH_BYTES = 103


def main() -> None:
    folder, binaries, options = json.loads(sys.argv[1])
    # The caller need not wait for a child that outlives it.
    if os.fork():
        os._exit(0)
    keep(Path(folder), Path(binaries), options)


def keep(folder: Path, binaries: Path, options: dict[str, str | int]) -> None:
    """Run the server until no process holds a lock on `users.lock`."""
    with open(folder / "keeper.lock", "a") as keeper:
        fcntl.flock(keeper, fcntl.LOCK_EX)
        account = unprivileged_account(folder)
        binaries = reachable_binaries(binaries, account)
        data = data_folder(folder, binaries, account)
        stop_orphan(binaries, data, account)
        # The users' lock is let go of after the server has stopped: who comes meanwhile waits.
        with (
            open(folder / "users.lock", "a") as users,
            running(folder, binaries, data, options, account),
        ):
            print("ready", flush=True)
            log = os.open(folder / "log", os.O_WRONLY | os.O_APPEND)
            os.dup2(log, sys.stdout.fileno())
            os.dup2(log, sys.stderr.fileno())
            fcntl.flock(users, fcntl.LOCK_EX)


@contextmanager
def running(
    folder: Path,
    binaries: Path,
    data: Path,
    options: dict[str, str | int],
    account: pwd.struct_passwd | None,
) -> Iterator[None]:
    """Run the server; leave the block by SystemExit if it ends by itself or we are told to."""
    server = launch(folder, binaries, data, options, account)
    try:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit())
        signal.signal(signal.SIGCHLD, lambda *_: sys.exit())
        if server.poll() is not None:
            sys.exit()
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        server.send_signal(FAST_SHUTDOWN)
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            server.send_signal(IMMEDIATE_SHUTDOWN)
            server.wait()


def launch(
    folder: Path,
    binaries: Path,
    data: Path,
    options: dict[str, str | int],
    account: pwd.struct_passwd | None,
) -> subprocess.Popen[bytes]:
    """Start the server on a free port, and return when it accepts connections."""
    while True:
        port = free_port()
        fits = len(os.fsencode(data / f".s.PGSQL.{port}")) <= SOCKET_PATH_BYTES
        # libpq takes a comma for the end of a host.
        fits = fits and "," not in str(data)
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": f'"{data}"' if fits else "",
            **options,
        }
        command: list[str | Path] = [binaries / "bin" / "postgres", "-D", data]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with open(folder / "log", "wb") as log:
            server = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **as_account(account)
            )
        if wait_until_ready(server, data):
            return server
        words = (folder / "log").read_text(errors="replace")
        # Somebody took the port between our look and the server's.
        if "Address already in use" not in words:
            refuse(server_words(words) or f"see {folder / 'log'}.")


def wait_until_ready(server: subprocess.Popen[bytes], data: Path) -> bool:
    """Return whether the server accepts connections; False if it has ended."""
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None:
        try:
            lines = (data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            lines = []
        if len(lines) == 8 and int(lines[0]) == server.pid and lines[7].strip() == "ready":
            return True
        if time.monotonic() > deadline:
            server.send_signal(IMMEDIATE_SHUTDOWN)
            server.wait()
            refuse(f"it was not ready after {START_SECONDS:.0f} seconds.")
        time.sleep(0.02)
    return False


def data_folder(folder: Path, binaries: Path, account: pwd.struct_passwd | None) -> Path:
    """Return the data folder with links resolved; make the database cluster if there is none."""
    data = folder / "data"
    if data.exists():
        return data.resolve()
    for leftover in folder.glob("data-*"):
        shutil.rmtree(leftover)

    place, notice = folder, ""
    if account is not None:
        folder.chmod(folder.stat().st_mode | 0o111)
        if not can_enter(folder, account):
            place = system_folder()
            notice = (
                f"PostgreSQL does not run as root, and its user {account.pw_name} cannot enter "
                f"{folder}: the data is in {place}, and {data} is a link to it."
            )

    # Made beside its final name: an initdb that is cut short leaves nothing that looks complete.
    cluster = Path(tempfile.mkdtemp(prefix="data-", dir=place))
    password = folder / "password"
    password.unlink(missing_ok=True)
    password.touch(mode=0o600)
    password.write_text(secrets.token_urlsafe(16))
    with tempfile.NamedTemporaryFile("w", dir=cluster.parent) as readable_password:
        readable_password.write(password.read_text())
        readable_password.flush()
        if account is not None:
            os.chown(cluster, account.pw_uid, account.pw_gid)
            os.chown(readable_password.name, account.pw_uid, account.pw_gid)
        initdb = subprocess.run(
            [
                binaries / "bin" / "initdb",
                f"--pgdata={cluster}",
                "--username=postgres",
                f"--pwfile={readable_password.name}",
                # The socket is in the data folder, which only the server's user can enter.
                "--auth-local=trust",
                "--auth-host=scram-sha-256",
                # The same on every machine, whatever its locale.
                "--encoding=UTF8",
                *locale_arguments(binaries),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
            **as_account(account),
        )
    if initdb.returncode:
        shutil.rmtree(cluster)
        refuse(server_words(initdb.stderr) or initdb.stderr)

    if data.is_symlink():
        data.unlink()
    if place is folder:
        cluster.rename(data)
    else:
        data.symlink_to(cluster)
        print(notice)
    return data.resolve()


def locale_arguments(binaries: Path) -> list[str]:
    """Return initdb's arguments for the locale C.UTF-8, from PostgreSQL itself where it has it."""
    version = subprocess.run(
        [binaries / "bin" / "initdb", "--version"], capture_output=True, text=True, check=True
    ).stdout
    # As in "initdb (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)".
    if int(version.split()[2].split(".")[0]) >= 17:
        return ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    return ["--locale=C.UTF-8"]


def stop_orphan(binaries: Path, data: Path, account: pwd.struct_passwd | None) -> None:
    """Stop a server whose keeper was killed: no one would ever stop it."""
    if (data / "postmaster.pid").exists():
        subprocess.run(
            [binaries / "bin" / "pg_ctl", "stop", "-w", "-m", "fast", "-D", data],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            # It fails if the file is left over from a crash, and PostgreSQL deals with that.
            check=False,
            **as_account(account),
        )


def unprivileged_account(folder: Path) -> pwd.struct_passwd | None:
    """Return whom the server runs as when we are root: PostgreSQL refuses to be root itself.

    That is the owner of the data, or of the project, or else nobody.
    """
    if os.geteuid() != 0:
        return None
    for path in (folder / "data", folder.parent):
        if path.exists() and (uid := path.stat().st_uid):
            try:
                return pwd.getpwuid(uid)
            except KeyError:
                # Files of a container's host; initdb refuses a user without a name.
                continue
    return pwd.getpwnam("nobody")


def reachable_binaries(binaries: Path, account: pwd.struct_passwd | None) -> Path:
    """Return *binaries*, or a copy of them if *account* cannot execute those."""
    if account is None or can_execute(binaries / "bin" / "postgres", account):
        return binaries
    package = binaries.parent
    release = next(package.parent.glob(f"{package.name}-*.dist-info")).stem
    copy = system_folder() / f"{release}-{binaries.name}"
    if not copy.exists():
        unfinished = Path(tempfile.mkdtemp(dir=copy.parent))
        shutil.copytree(binaries, unfinished / package.name / binaries.name)
        # What the wheel's binaries link to lies beside the package, found by a relative path.
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, unfinished / libraries.name)
        subprocess.run(["chmod", "-R", "a+rX", unfinished], check=True)
        try:
            unfinished.rename(copy)
        except OSError:
            # Another project's keeper made the same copy meanwhile.
            if not copy.exists():
                raise
            shutil.rmtree(unfinished)
    return copy / package.name / binaries.name


def system_folder() -> Path:
    SYSTEM_FOLDER.mkdir(parents=True, exist_ok=True)
    SYSTEM_FOLDER.chmod(0o755)
    return SYSTEM_FOLDER


def can_enter(folder: Path, account: pwd.struct_passwd) -> bool:
    test: list[str | Path] = ["/bin/sh", "-c", 'test -x "$0"', folder]
    return subprocess.run(test, check=False, **as_account(account)).returncode == 0


def can_execute(binary: Path, account: pwd.struct_passwd) -> bool:
    try:
        run = subprocess.run(
            [binary, "--version"], capture_output=True, check=False, **as_account(account)
        )
    except PermissionError:
        return False
    return run.returncode == 0


def as_account(account: pwd.struct_passwd | None) -> dict[str, Any]:
    """Return what makes `subprocess` run a command as *account*, outside our own folder."""
    if account is None:
        return {"cwd": "/"}
    return {"cwd": "/", "user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def server_words(log: str) -> str:
    """Return in one line what PostgreSQL says went wrong."""
    found = re.findall(r"(?:FATAL|DETAIL|HINT|error|detail|hint):\s+(.*)", log)
    return " ".join(f"{sentence.rstrip('.')}." for sentence in found)


def refuse(reason: str) -> NoReturn:
    print(reason, flush=True)
    sys.exit(1)


if __name__ == "__main__":
    main()
