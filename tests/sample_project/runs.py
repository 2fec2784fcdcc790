"""Runs of Python on the sample project, in processes of their own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psycopg

from tests.support.limits import PATIENCE
from tests.support.script import ROOT

PROJECT = Path(__file__).parent


def environment(**variables: str) -> dict[str, str]:
    """Return the environment of a process that runs tests of the sample project."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (PROJECT, ROOT))),
        "DJANGO_SETTINGS_MODULE": "sample.settings",
        **variables,
    }


def run(*command: str, **variables: str) -> tuple[int, str]:
    """Run Python with *command* in the sample project; return its exit status and output."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *command],
        cwd=PROJECT,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
    )
    return done.returncode, done.stdout


def interrupt(*command: str, at: tuple[str, ...], **variables: str) -> tuple[int, str]:
    """Run Python with *command*, interrupt it at each line *at*; return status and output."""
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=PROJECT,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        output = ""
        try:
            for line in process.stdout:
                output += line
                if line.endswith(tuple(f"{word}\n" for word in at)):
                    process.send_signal(signal.SIGINT)
        except BaseException:
            # The test has timed out.
            process.kill()
            raise
    return process.returncode, output


def leftovers() -> list[str]:
    """Return the databases of the sample project, all made for tests, that are still there."""
    with psycopg.connect(os.environ["PGBACKEND_TEST_DSN"], autocommit=True) as conn:
        rows = conn.execute(
            "SELECT datname FROM pg_database WHERE datname LIKE 'test\\_pgbackend\\_sample%'"
        )
        return [name for (name,) in rows]


def drop_leftovers() -> None:
    """Drop what a run that failed has left, so that it fails alone."""
    with psycopg.connect(os.environ["PGBACKEND_TEST_DSN"], autocommit=True) as conn:
        for name in leftovers():
            conn.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
