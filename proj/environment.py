"""What the settings of both sites read from the environment, or keep in `.postgres`.

The database is the one that DATABASE_URL or the PG* variables name, or else an embedded
PostgreSQL that keeps its data in that folder.
"""

import getpass
import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
from django.core.exceptions import ImproperlyConfigured
from psycopg.conninfo import conninfo_to_dict

from proj import postgres

BASE_DIR = Path(__file__).resolve().parent.parent

# Git ignores this folder.
STATE_DIR = BASE_DIR / ".postgres"


def kept_secret(name: str) -> str:
    """Return the variable *name* of the environment, or a secret that the first start has made.

    The two sites may start at once: whose file is there first has made the secret of both.
    """
    if secret := os.environ.get(name):
        return secret
    path = STATE_DIR / name.lower()
    if not path.exists():
        STATE_DIR.mkdir(exist_ok=True)
        # Readable by its owner alone.
        descriptor, made = tempfile.mkstemp(dir=STATE_DIR)
        try:
            with open(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(50))
            with suppress(FileExistsError):
                os.link(made, path)
        finally:
            os.unlink(made)
    return path.read_text()


def database_from_url(url: str) -> dict[str, Any]:
    """Return the settings for postgresql://user:password@host:port/name?option=value.

    libpq reads the address itself: sockets, several hosts and its own options work as they do
    in psql. See https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNSTRING.
    """
    try:
        if not url.startswith(("postgresql://", "postgres://")):
            raise psycopg.ProgrammingError
        options = conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        # What libpq says may quote the password.
        raise ImproperlyConfigured(
            "DATABASE_URL is not an address of PostgreSQL: write it as "
            "postgresql://user:password@host:5432/name, with %XX for special characters "
            "(@ is %40), or unset it."
        ) from None
    user = options.pop("user", "")
    return {
        "NAME": options.pop("dbname", "") or user or getpass.getuser(),
        "USER": user,
        "PASSWORD": options.pop("password", ""),
        "HOST": options.pop("host", ""),
        "PORT": options.pop("port", ""),
        "OPTIONS": options,
    }


def database_from_variables(environ: dict[str, str]) -> dict[str, Any]:
    """Return the settings for psql's variables PGHOST, PGPORT, PGUSER and so on."""
    service = environ.get("PGSERVICE")
    user = environ.get("PGUSER", "")
    return {
        # A service names its database itself.
        "NAME": environ.get("PGDATABASE") or ("" if service else user or getpass.getuser()),
        "USER": user,
        "PASSWORD": environ.get("PGPASSWORD", ""),
        "HOST": environ.get("PGHOST", ""),
        "PORT": environ.get("PGPORT", ""),
        "OPTIONS": {"service": service} if service else {},
    }


def embedded_database() -> dict[str, Any]:
    server = postgres.start(STATE_DIR)
    return {
        "NAME": server.dbname,
        "USER": server.user,
        "PASSWORD": server.password,
        "HOST": server.host,
        "PORT": server.port,
        "OPTIONS": {},
    }


def database() -> dict[str, Any]:
    if url := os.environ.get("DATABASE_URL"):
        return database_from_url(url)
    names = ["PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE", "PGSERVICE"]
    if given := {name: os.environ[name] for name in names if os.environ.get(name)}:
        return database_from_variables(given)
    return embedded_database()
