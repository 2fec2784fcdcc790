"""Two databases with the same tables: one for Django's own backend, one for this one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from copy import deepcopy
from typing import Any, Self

import psycopg
from django.db import connections
from psycopg import sql

STOCK, OURS = "differential_stock", "differential_ours"


class Databases:
    """Both databases, with an alias for each; a class derived from this makes the tables."""

    def __init__(self, dsn: str, *, options: dict[str, Any], common: dict[str, Any]) -> None:
        self._dsn = dsn
        # The options of this backend, and of both.
        self._options = options
        self._common = common

    def create_tables(self, alias: str) -> None:
        """Make the tables."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        for alias, engine in ((STOCK, "django.db.backends.postgresql"), (OURS, "pgbackend")):
            conf = deepcopy(connections.settings["default"])
            options = {"application_name": conf["OPTIONS"]["application_name"], **self._common}
            conf |= {"ENGINE": engine, "NAME": alias, "OPTIONS": options}
            if alias == OURS:
                options |= self._options
            connections.settings[alias] = conf
        self._create(STOCK)
        self.create_tables(STOCK)
        connections[STOCK].close()
        self._create(OURS, template=STOCK)
        self._looks = ExitStack()
        # Connections that look at the tables, in the order of the aliases.
        self.tables = [
            self._looks.enter_context(psycopg.connect(self._dsn, dbname=alias, autocommit=True))
            for alias in (STOCK, OURS)
        ]
        # Django's backend runs here, where no loop does.
        self.thread = self._looks.enter_context(ThreadPoolExecutor(1))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._looks.close()
        for alias in (STOCK, OURS):
            connections[alias].close()
            connections[alias].close_pool()
            del connections[alias], connections.settings[alias]
        with psycopg.connect(self._dsn, autocommit=True) as conn:
            for alias in (STOCK, OURS):
                conn.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(alias)))

    def _create(self, name: str, *, template: str = "template0") -> None:
        with psycopg.connect(self._dsn, autocommit=True) as conn:
            database, original = sql.Identifier(name), sql.Identifier(template)
            conn.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(database))
            conn.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(database, original))
