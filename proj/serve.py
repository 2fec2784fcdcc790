"""`python -m proj.serve` makes the database ready and serves the site; `make run` calls it."""

import os
import signal
import socket
import sys
from typing import NoReturn

import django
import uvicorn
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.db import NotSupportedError, OperationalError, connection
from django.db.migrations.exceptions import MigrationSchemaMissing

from proj import postgres
from proj.environment import STATE_DIR

HOST = "127.0.0.1"

ADDRESSES = """
  Menu    http://{host}:{port}/
  Board   http://{host}:{port}/board/
  Report  http://{host}:{port}/report/
  API     http://{host}:{port}/api/dishes/
  Admin   http://{host}:{port}/admin/
  Status  http://{host}:{port}/status/

Ctrl-C stops the site.
"""


class Server(uvicorn.Server):
    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Not at the top: models can be imported only when Django is set up.
        from kitchen import board
        from pgbackend.status.sampling import close_streams

        board.close_streams()
        close_streams()
        await super().shutdown(sockets)


def main() -> None:
    listener = listen(os.environ.get("PORT", "8000"), "make run PORT=8001")
    stop_on_sigterm()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "proj.settings")
    # An address where nobody answers is told after ten seconds, not after two minutes.
    os.environ.setdefault("PGCONNECT_TIMEOUT", "10")
    try:
        django.setup()
        try:
            prepare_database()
            serve(listener)
        finally:
            postgres.stop(STATE_DIR)
    except (postgres.ServerError, ImproperlyConfigured) as error:
        sys.exit(str(error))
    except PermissionError as error:
        sys.exit(f"{error.filename} belongs to another user: run as that user, or make clean.")
    except KeyboardInterrupt:
        sys.exit()


def listen(port: str, another: str) -> socket.socket:
    """Return the listening socket of *port*; or say why not, and that *another* command may help.

    It comes before all else: a second start ends here, and touches nothing of the first.
    """
    try:
        return socket.create_server((HOST, int(port)))
    except (OSError, OverflowError, ValueError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) else error
        sys.exit(
            f"Port {port} of {HOST} cannot be used ({reason}): stop what listens there, or "
            f"choose another, as in: {another}"
        )


def stop_on_sigterm() -> None:
    """Have SIGTERM end the process as Ctrl-C does.

    uvicorn sends itself the signal again when it has ended: without this the process would be gone
    before it has stopped PostgreSQL.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())


def prepare_database() -> None:
    try:
        connection.ensure_connection()
    except (OperationalError, NotSupportedError) as error:
        refuse_database(error)
    try:
        call_command("migrate", verbosity=0)
        call_command("loaddemo")
    except MigrationSchemaMissing as error:
        refuse_database(error)
    connection.close()


def refuse_database(error: Exception) -> NoReturn:
    words = " ".join(str(error).split()).rstrip(".?")
    sys.exit(
        f"PostgreSQL cannot be used: {words}. Correct DATABASE_URL or the PG* variables, "
        "or unset them all for an embedded server."
    )


def serve(listener: socket.socket) -> None:
    config = uvicorn.Config(
        "proj.asgi:application",
        # Start-up opens the pool; without a database it fails, with the server's words.
        lifespan="on",
        # uvicorn's five seconds are short enough to cut off a client that is about to ask again.
        timeout_keep_alive=60,
        timeout_graceful_shutdown=5,
    )
    host, port = listener.getsockname()
    print(ADDRESSES.format(host=host, port=port), flush=True)
    server = Server(config)
    server.run(sockets=[listener])
    if not server.started:
        sys.exit(1)


if __name__ == "__main__":
    main()
