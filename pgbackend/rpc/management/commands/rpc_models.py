"""Write client models of a service, or tell whether those of a file are still as they would be."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connections

from ...described import described
from ...protocol.errors import RemoteError
from ...written_models import module_of


class Command(BaseCommand):
    help = "Prints models of a service, as it exposes them to this principal."
    requires_system_checks: list[str] = []  # noqa: RUF012  # as Django's

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--database", default="rpc", help='The alias of the service, "rpc".')
        parser.add_argument("--model", action="append", help="Only app.Model; may be repeated.")
        parser.add_argument("--output", help="Write the models to this file.")
        parser.add_argument(
            "--check",
            metavar="FILE",
            help="Compare the models with FILE: exit with 1, and the difference, if it has others.",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        alias = options["database"]
        if alias not in connections.settings or connections[alias].vendor != "rpc":
            raise CommandError(f"{alias!r} is no alias of DATABASES with ENGINE 'pgbackend.rpc'.")
        try:
            exposed = described(alias)
        except RemoteError as error:
            raise CommandError(f"The service {alias!r} has not answered: {error}") from error
        wanted = options["model"]
        if wanted:
            if missing := sorted(set(wanted) - set(exposed)):
                raise CommandError(f"The service does not expose {', '.join(missing)}.")
            exposed = {label: exposed[label] for label in wanted}
        text = module_of(exposed, alias)
        if options["check"]:
            self._check(Path(options["check"]), text)
        elif options["output"]:
            Path(options["output"]).write_text(text)
        else:
            self.stdout.write(text, ending="")

    def _check(self, file: Path, text: str) -> None:
        found = file.read_text() if file.exists() else ""
        if found == text:
            return
        lines = difflib.unified_diff(
            found.splitlines(), text.splitlines(), str(file), "the service", lineterm=""
        )
        raise CommandError("\n".join(lines), returncode=1)
