"""``runserver`` as an ASGI server: Django's own command, with uvicorn in place of its WSGI server.

Reloading, checks, static files and options are those of the command that would be run without this
one: the next ``runserver`` in ``INSTALLED_APPS``, or Django's. An application with a server of its
own, such as daphne, is left to it.
"""

from __future__ import annotations

import atexit
import copy
import socket
import threading
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from django.apps import apps
from django.conf import settings
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand
from django.utils.module_loading import import_string

from pgbackend.asgi import LifespanApplication

# How long a restart waits for requests that still run, and then for the pools, seconds.
_REQUESTS_TIMEOUT = 1
_POOLS_TIMEOUT = 2.0


def find_next() -> type[BaseCommand]:
    """Return the ``runserver`` that this one stands before, as WhiteNoise's looks for it."""
    for name in _names_below():
        module = f"{name}.management.commands.runserver"
        try:
            found: type[BaseCommand] = import_module(module).Command
        except ModuleNotFoundError as error:
            if error.name is None or not module.startswith(error.name):
                raise
        else:
            return found
    raise LookupError("Django has no runserver")


def _names_below() -> Iterator[str]:
    names = [config.name for config in apps.get_app_configs()]
    yield from names[names.index("pgbackend") + 1 :] if "pgbackend" in names else names
    yield "django.core"


def has_own_server(command: Any) -> bool:
    """Return whether a ``runserver`` starts another server than Django's, so that it has to."""
    of_server = ("run", "inner_run", "get_handler")
    places = [getattr(command, name).__module__ for name in of_server]
    return not all(
        place.startswith("django.") for place in [*places, command.server_cls.__module__]
    )


class UvicornServer:
    """uvicorn, as ``runserver`` starts and asks a server: the *server_cls* of the command."""

    def __init__(self, address: tuple[str, int], handler: object, *, ipv6: bool = False) -> None:
        family = socket.AF_INET6 if ipv6 else socket.AF_INET
        host, port = address
        self._socket = socket.create_server((host if host != "0" else "", port), family=family)
        # Django prints it: with port 0 the system has chosen one.
        self.server_port: int = self._socket.getsockname()[1]
        self._application: Any = None

    def set_app(self, application: Any) -> None:
        """Serve *application*."""
        self._application = application

    def serve_forever(self) -> None:
        """Serve until a signal, or the end of the process, which a reload brings about."""
        import uvicorn

        log_config = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
        # Django's command has said what its lines would say.
        log_config["loggers"]["uvicorn.error"]["level"] = "WARNING"
        server = uvicorn.Server(
            uvicorn.Config(
                self._application,
                log_config=log_config,
                timeout_graceful_shutdown=_REQUESTS_TIMEOUT,
            )
        )
        ended = threading.Event()

        def end() -> None:
            server.should_exit = True
            # Another Ctrl-C: whoever asks twice does not want to wait.
            with suppress(KeyboardInterrupt):
                ended.wait(_REQUESTS_TIMEOUT + _POOLS_TIMEOUT + 1.0)

        # Under the reloader this is a thread, which the process would leave behind.
        in_thread = threading.current_thread() is not threading.main_thread()
        if in_thread:
            atexit.register(end)
        try:
            server.run(sockets=[self._socket])
        finally:
            ended.set()


class Uvicorn:
    """Part of a ``runserver`` command: its server is uvicorn, where that is installed."""

    # The methods that are extended are those of `find_next()`.
    stdout: Any
    style: Any
    server_cls: Any

    def serves_asgi(self) -> bool:
        """Return whether the command, as it is installed, serves ASGI."""
        return find_spec("uvicorn") is not None

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the arguments."""
        super().add_arguments(parser)  # type: ignore[misc]  # that of the command
        parser.add_argument(
            "--noasgi",
            action="store_false",
            dest="use_asgi",
            help="Run Django's WSGI server. Asynchronous views are not bridged there.",
        )

    def inner_run(self, *args: Any, **options: Any) -> None:
        """Run the server, after Django's checks."""
        if options["use_asgi"] and self.serves_asgi():
            self.server_cls = UvicornServer
        super().inner_run(*args, **options)  # type: ignore[misc]  # that of the command

    def get_handler(self, *args: Any, **options: Any) -> Any:
        """Return the application: that of ``ASGI_APPLICATION``, or Django's own."""
        if self.server_cls is not UvicornServer:
            return super().get_handler(*args, **options)  # type: ignore[misc]  # as above
        application = _application()
        if not isinstance(application, LifespanApplication):
            application = LifespanApplication(application, timeout=_POOLS_TIMEOUT)
        # The options are those of django.contrib.staticfiles.
        if options.get("use_static_handler") and (settings.DEBUG or options["insecure_serving"]):
            return ASGIStaticFilesHandler(application)
        return application

    def on_bind(self, server_port: int) -> None:
        """Say where the server is, and which it is."""
        super().on_bind(server_port)  # type: ignore[misc]  # that of the command
        if self.server_cls is UvicornServer:
            import uvicorn

            self.stdout.write(f"It is uvicorn {uvicorn.__version__}: requests are ASGI.")
        else:
            words = (
                "This server is WSGI: asynchronous views run there, but are not bridged."
                " Lazy relations and raw cursors are errors in them."
            )
            if not self.serves_asgi():
                words += " For ASGI: pip install uvicorn"
            self.stdout.write(self.style.WARNING(words))


def _application() -> Any:
    path = getattr(settings, "ASGI_APPLICATION", None)
    if path is None:
        return get_asgi_application()
    try:
        return import_string(path)
    except ImportError as error:
        raise ImproperlyConfigured(
            f"ASGI_APPLICATION {path!r} could not be loaded: {error}"
        ) from error


_Next: Any = find_next()

if has_own_server(_Next):
    Command = _Next
else:

    class Command(Uvicorn, _Next):  # type: ignore[no-redef]  # either this or the next one's
        """The command ``runserver``."""

        help = "Starts an ASGI server for development, and also serves static files."
