"""Python scripts run in processes of their own: for what happens at import, once a process."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

from tests.support.limits import PATIENCE

ROOT = Path(__file__).parents[2]

# The tests' settings, which a script may change before it sets up Django.
PROLOGUE = """\
import asyncio
import sys
import threading
from tests import settings as tests_settings
from django.conf import settings
conf = {name: value for name, value in vars(tests_settings).items() if name.isupper()}
del conf["APPLICATION_NAME"]
"""


def run_script(source: str, *, path: Path | None = None) -> str:
    """Run *source* after `PROLOGUE`, warnings as errors, and return what it prints.

    *path* goes before everything else on sys.path. A script that fails, or that writes to
    stderr, fails the test.
    """
    folders = [str(folder) for folder in (path, ROOT) if folder is not None]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROLOGUE + textwrap.dedent(source)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout
