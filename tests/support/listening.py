"""What a process of `Listen` does: `listen`, forked from a process that has set Django up once.

The fork server of multiprocessing imports this module before all else, with the environment of the
tests. A `python -m django listen` of its own takes a second to get as far.
"""

import os
import sys

import django
from django.core.management import execute_from_command_line


def listen(arguments: tuple[str, ...], log: str) -> None:
    """Be ``manage.py listen`` in a session of its own, which writes to the file *log*."""
    os.setsid()
    fd = os.open(log, os.O_WRONLY | os.O_APPEND)
    for standard in (sys.stdout, sys.stderr):
        os.dup2(fd, standard.fileno())
    os.close(fd)
    execute_from_command_line(["django", "listen", *arguments])


if os.environ.get("DJANGO_SETTINGS_MODULE"):
    django.setup()
