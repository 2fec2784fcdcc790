"""The command `pubsub`: look at the stored notifications, and keep the table in order."""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from typing import Any

from django.core.management import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, InterfaceError, router

from ... import upkeep
from ...errors import PubsubError
from ...installed import NO_TABLE, has_table
from ...models import Notification


class Command(BaseCommand):
    """Look at the stored notifications, and keep the table in order."""

    help = (
        "stats: what is stored, by channel and state. requeue: make dead notifications ready."
        " prune: delete old dead ones. health: exit with 1 if something is amiss."
    )
    requires_system_checks: list[str] = []  # noqa: RUF012  # Django's

    def add_arguments(self, parser: CommandParser) -> None:
        """Add a parser for each of the commands."""
        parsers = parser.add_subparsers(dest="what", required=True)
        stats = parsers.add_parser("stats", help="What is stored, by channel and state.")
        requeue = parsers.add_parser("requeue", help="Make dead notifications ready.")
        prune = parsers.add_parser("prune", help="Delete dead notifications that are old.")
        health = parsers.add_parser("health", help="Exit with 1 if something is amiss.")
        for each in (stats, requeue, prune, health):
            each.add_argument("--json", action="store_true", help="One JSON value.")
            each.add_argument("--database", help="The alias; by default that of the model.")
        for each in (requeue, prune):
            each.add_argument("--channels", nargs="+", help="Dotted paths, or names of rows.")
            each.add_argument("--all", action="store_true", help="Of all channels.")
        requeue.add_argument("--ids", nargs="+", type=int, help="The rows with these ids.")
        prune.add_argument("--days", type=float, default=30.0, help="Older than this; 30.")
        health.add_argument("--file", help="The --health-file of a process with `listen`.")
        health.add_argument("--max-age", type=float, default=upkeep.MAX_AGE, help="Of it; seconds.")
        health.add_argument("--max-lag", type=float, help="Seconds that a row may be ready.")
        health.add_argument("--max-dead", type=int, help="How many rows may be dead.")

    def handle(self, *args: Any, what: str, **options: Any) -> None:
        """Do one of the commands."""
        alias = options["database"] or router.db_for_write(Notification)
        try:
            if not options.get("file") and not has_table(alias):
                raise PubsubError(f"{NO_TABLE.format(alias)} Run migrate.")
            getattr(self, f"do_{what}")(alias, options)
        except (PubsubError, DatabaseError, InterfaceError) as error:
            raise CommandError(str(error)) from error

    def do_stats(self, alias: str, options: dict[str, Any]) -> None:
        """Write what is stored."""
        lines = upkeep.stats(alias)
        if options["json"]:
            self.stdout.write(json.dumps(lines))
            return
        for line in lines:
            oldest = "" if line["oldest"] is None else f", the oldest {line['oldest']:.1f} s"
            heard = "" if line["heard"] or line["state"] == "plain" else "; no listener here"
            self.stdout.write(
                f"{line['channel']} {line['state']}: {line['count']}{oldest},"
                f" at most {line['attempts']} attempts{heard}"
            )
        if not lines:
            self.stdout.write("Nothing is stored.")

    def do_requeue(self, alias: str, options: dict[str, Any]) -> None:
        """Make dead rows ready."""
        if not (options["channels"] or options["ids"] or options["all"]):
            raise PubsubError("name the rows: --channels, --ids or --all")
        count = upkeep.requeue(alias, options["channels"], options["ids"])
        self.tell(options, {"requeued": count}, f"{count} are ready again.")

    def do_prune(self, alias: str, options: dict[str, Any]) -> None:
        """Delete dead rows."""
        if not (options["channels"] or options["all"]):
            raise PubsubError("name the rows: --channels or --all")
        count = upkeep.prune(alias, options["channels"], timedelta(days=options["days"]))
        self.tell(options, {"deleted": count}, f"{count} were deleted.")

    def do_health(self, alias: str, options: dict[str, Any]) -> None:
        """Look at a worker's health file, or at the table; exit with 1 if something is amiss."""
        if options["file"]:
            found = upkeep.file_health(options["file"], options["max_age"])
        else:
            found = upkeep.health(alias, options["max_lag"], options["max_dead"])
        problems = found["problems"]
        self.tell(options, found, "\n".join(problems) or "All is well.")
        if problems:
            sys.exit(1)

    def tell(self, options: dict[str, Any], value: dict[str, Any], words: str) -> None:
        """Write the outcome as JSON or in words."""
        self.stdout.write(json.dumps(value) if options["json"] else words)
