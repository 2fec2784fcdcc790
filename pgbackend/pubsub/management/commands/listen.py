"""The command `listen`: handle notifications until a signal, or until what was asked is done."""

from __future__ import annotations

import atexit
import logging
import sys
from argparse import SUPPRESS, ArgumentTypeError
from typing import Any

from django.core.management import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, InterfaceError

from ...checks import TAG
from ...errors import PubsubError
from ...installed import warn_of_triggers
from ...marks import Marks
from ...processes import Supervisor
from ...sending import database
from ...serving import Options, ignore_signals, run
from ...worker import CONCURRENCY, GRACEFUL_TIMEOUT, Worker


class Command(BaseCommand):
    """Handle the notifications of channels that have listeners."""

    help = (
        "Handle the notifications of channels that have listeners. Exit codes: 0 after SIGTERM or"
        " SIGINT, or when what was asked for is done; 1 for an error; 3 if handlers were cancelled"
        " at the end of --graceful-timeout; 4 if the process ended at once, at a second signal."
    )
    # What listens should not fail since a check of, say, templates does.
    # What would go wrong with a channel is told before anything is handled.
    requires_system_checks: list[str] = [TAG]  # noqa: RUF012  # Django's
    # Whether it is the command of the process, and was not called.
    ends_process = False

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the arguments: first those of django-pgpubsub."""
        add = parser.add_argument
        add("--channels", nargs="+", help="Dotted paths of channel classes; all by default.")
        add(
            "--processes",
            type=_count,
            help="Start so many processes, and start those anew that fail.",
        )
        add("--worker", action="store_true", help=SUPPRESS)
        add(
            "--worker-start-method",
            choices=("spawn", "fork"),
            default="spawn",
            help="How processes are started. 'fork' is quicker, and unsafe where threads run.",
        )
        add(
            "--no-restart-on-failure",
            action="store_true",
            help="Do not start processes anew that fail.",
        )
        add(
            "--recover",
            action="store_true",
            help="Accepted for django-pgpubsub: what is stored is always handled.",
        )
        add("--loglevel", default="info", help="info by default.")
        add("--logformat", default="%(asctime)s %(levelname).4s %(message)s")
        add(
            "--concurrency",
            type=_count,
            default=CONCURRENCY,
            help=f"Transactions and leases at once, in each process; {CONCURRENCY} by default.",
        )
        add("--batch", action="store_true", help="Handle what is stored, and end.")
        add("--max-notifications", type=_count, help="End after so many, in each process.")
        add(
            "--graceful-timeout",
            type=_seconds,
            default=GRACEFUL_TIMEOUT,
            help=f"Seconds that handlers have to end; {GRACEFUL_TIMEOUT:g} by default.",
        )
        add("--health-file", help="A file to keep up to date for `pubsub health --file`.")
        add("--loop", choices=("asyncio", "uvloop"), default="asyncio")
        add("--parent-fd", type=int, help=SUPPRESS)
        add("--marks-fd", type=int, help=SUPPRESS)

    def check(self, *args: Any, **options: Any) -> None:
        """Run the checks that ask no server: `warn_of_triggers` does that, for what is heard."""
        super().check(*args, **{**options, "databases": options.get("databases") or []})

    def run_from_argv(self, argv: list[str]) -> None:
        """Run as the command of a process: it ends with an exit code, whatever signals come."""
        self.ends_process = True
        # Later than this, Python no longer calls a handler.
        atexit.register(ignore_signals)
        super().run_from_argv(argv)

    def handle(self, *args: Any, **options: Any) -> None:
        """Run a worker, or the parent of several; end with the exit code."""
        logging.basicConfig(format=options["logformat"], level=options["loglevel"].upper())
        if options["worker"] and (options["processes"] or 1) > 1:
            raise CommandError("--worker is for one process: leave out --processes")
        try:
            worker = self.make_worker(options)
            if options["parent_fd"] is None:
                warn_of_triggers(worker.channels)
            if options["processes"] is None or options["worker"]:
                code = run(worker, self.run_options(options))
            else:
                code = self.supervisor(worker, options).run()
        except (PubsubError, DatabaseError, InterfaceError, ImportError) as error:
            raise CommandError(str(error)) from error
        if code:
            sys.exit(code)

    @staticmethod
    def make_worker(options: dict[str, Any]) -> Worker:
        """Return the worker that the options ask for."""
        return Worker(
            options["channels"],
            concurrency=options["concurrency"],
            max_notifications=options["max_notifications"],
            marks=None if options["marks_fd"] is None else Marks(options["marks_fd"]),
        )

    def run_options(self, options: dict[str, Any]) -> Options:
        """Return how to run it."""
        return Options(
            batch=options["batch"],
            graceful_timeout=options["graceful_timeout"],
            health_file=options["health_file"],
            parent_fd=options["parent_fd"],
            loop=options["loop"],
            ends_process=self.ends_process,
        )

    def supervisor(self, worker: Worker, options: dict[str, Any]) -> Supervisor:
        """Return the parent of so many processes."""
        if options["health_file"]:
            raise CommandError("--health-file is for one process: leave out --processes")

        def target(given: list[str]) -> None:
            fds = dict(zip(given[::2], given[1::2], strict=True))
            options["parent_fd"], options["marks_fd"] = map(int, fds.values())
            sys.exit(run(self.make_worker(options), self.run_options(options)))

        return Supervisor(
            options["processes"],
            _arguments(options),
            sorted({database(channel) for channel in worker.channels}),
            options["graceful_timeout"],
            options["worker_start_method"],
            not options["no_restart_on_failure"],
            target,
            self.ends_process,
        )


def _arguments(options: dict[str, Any]) -> list[str]:
    """Return the arguments of a child."""
    given = []
    for name in (
        "loglevel",
        "logformat",
        "concurrency",
        "max_notifications",
        "graceful_timeout",
        "loop",
        "settings",
        "pythonpath",
    ):
        if options.get(name) is not None:
            given += [f"--{name.replace('_', '-')}", str(options[name])]
    if options["batch"]:
        given.append("--batch")
    if options["channels"]:
        given += ["--channels", *options["channels"]]
    return given


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise ArgumentTypeError(f"{text!r} is no number of seconds of 0 or more")
    return seconds
