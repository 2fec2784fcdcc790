"""Ask the databases whether they answer; the exit code says it."""

from __future__ import annotations

import asyncio
import json
import sys
from argparse import ArgumentParser
from dataclasses import asdict
from typing import Any, ClassVar

from django.core.management.base import BaseCommand

from pgbackend.health import check_all


class Command(BaseCommand):
    """The command ``dbhealth``."""

    help = "Ask each database for an answer. Exits with status 1 if one has none in time."
    # A check of Django's may need the database.
    requires_system_checks: ClassVar[list[str]] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the arguments."""
        parser.add_argument(
            "--database",
            action="append",
            metavar="ALIAS",
            help="the alias to ask, more than once for several; by default all of pgbackend",
        )
        parser.add_argument(
            "--within", type=float, default=2.0, help="seconds for an answer; by default 2"
        )
        parser.add_argument(
            "--role", choices=["primary", "replica"], help="what each server has to be"
        )
        parser.add_argument("--json", action="store_true", help="print for programs")

    def handle(self, *args: Any, **options: Any) -> None:
        """Print a line for each database."""
        asked = check_all(options["database"], within=options["within"], role=options["role"])
        found = asyncio.run(asked)
        if options["json"]:
            self.stdout.write(json.dumps([asdict(each) for each in found]))
        else:
            for each in found:
                words = each.reason or f"{each.role}, {each.seconds * 1000:.1f} ms"
                self.stdout.write(f"{each.alias}: {words}")
        if not all(each.ok for each in found):
            sys.exit(1)
