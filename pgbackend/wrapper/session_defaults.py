"""What a session begins with: the time-outs of the settings, and a name where nobody gave one.

These go into the startup message, so that they are the session's defaults: RESET ALL and
DISCARD ALL go back to them, and they cost no statement.

https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS
"""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from math import ceil
from pathlib import Path
from typing import Any

# PostgreSQL's settings of the same names, in ``OPTIONS``.
TIMEOUTS = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")

# The longest name that PostgreSQL keeps, bytes.
_LONGEST = 63


def with_session_defaults(
    alias: str, options: dict[str, Any], params: dict[str, Any]
) -> dict[str, Any]:
    """Return psycopg's arguments *params* with the time-outs of *options*, and a name.

    What libpq would take from PGOPTIONS is kept in front of the time-outs. The name is used where
    neither ``OPTIONS["application_name"]``, a service nor PGAPPNAME has one.
    """
    made = [
        f"-c {name}={_milliseconds(value)}"
        for name in TIMEOUTS
        if (value := options.get(name)) is not None
    ]
    found = {"fallback_application_name": application_name(alias), **params}
    if made:
        before = found.get("options", os.environ.get("PGOPTIONS", ""))
        found["options"] = " ".join([before, *made] if before else made)
    return found


def application_name(alias: str) -> str:
    """Return a name of project, program, process and *alias*: "shop uvicorn[4711] default"."""
    project = os.environ.get("DJANGO_SETTINGS_MODULE", "").partition(".")[0]
    rest = f"[{os.getpid()}] {alias}"
    words = f"{project} {_program()}".strip()
    return words[: max(0, _LONGEST - len(rest.encode()))] + rest


def _program() -> str:
    """Return what runs: a command of ``manage.py``, or the name of the script or module."""
    script, *arguments = sys.argv or [""]
    path = Path(script)
    if path.name in ("manage.py", "django-admin") and arguments:
        return arguments[0]
    if path.name == "__main__.py":
        return arguments[0] if path.parent.name == "django" and arguments else path.parent.name
    return path.stem if path.name not in ("", "-c", "-m", "-") else "python"


def _milliseconds(value: float | timedelta) -> int:
    """Return *value* in milliseconds; only 0, which means no time-out, becomes 0."""
    return ceil(value.total_seconds() * 1000 if isinstance(value, timedelta) else value * 1000)
