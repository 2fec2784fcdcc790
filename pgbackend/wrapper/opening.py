"""Make the pool of a wrapper, and prepare each connection before its first use."""

from __future__ import annotations

import math
import os
from asyncio import get_running_loop
from typing import Any
from weakref import WeakValueDictionary

import psycopg
import psycopg.rows
import psycopg.sql
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.backends.base.base import NO_DB_ALIAS
from django.db.backends.signals import connection_created

from ..pool.face import BridgedConnection
from ..pool.open_pools import get_pool
from ..pool.physical import PooledConnection
from ..pool.pool import ConnectionPool
from ..pool.session_reset import Reset
from ..session import snapshot
from ..session.guard import guard
from ..tasks.transaction import transactions

# Django's connection arguments that belong to the face, not to the asynchronous connection.
_FACE_ARGUMENTS = ("cursor_factory", "prepare_threshold", "context")


def pool_settings(wrapper: Any) -> tuple[Any, ...]:
    """Return the settings that distinguish a wrapper's pool from others; OPTIONS come last."""
    conf = wrapper.settings_dict
    return (
        wrapper.alias,
        conf["NAME"],
        conf["USER"],
        conf["PASSWORD"],
        conf["HOST"],
        conf["PORT"],
        conf["CONN_HEALTH_CHECKS"],
        wrapper.timezone_name,
        settings.USE_TZ,
        conf["OPTIONS"],
    )


# Aliases that have had a pool in this process, until close_pool(). Django keeps an alias's pool as
# long, and checks CONN_MAX_AGE only when it makes the pool.
_with_pool: set[str] = set()

# The latest pool found by a wrapper of each alias, so that a task's first query finds it.
_latest_pools: WeakValueDictionary[str, PoolForSettings] = WeakValueDictionary()


def find_pool(wrapper: Any) -> PoolForSettings:
    """Return the running loop's pool for a wrapper's settings, opened on first use."""
    found = _latest_pools.get(wrapper.alias)
    if found is None or not found.serves(wrapper):
        found = _latest_pools[wrapper.alias] = PoolForSettings(wrapper)
        # The pool keeps the entry in the weak dictionary alive.
        found.pool.settings_entry = found
    return found


class PoolForSettings:
    """A pool that a wrapper found, with the settings it was found for."""

    def __init__(self, wrapper: Any) -> None:
        *others, options = pool_settings(wrapper)
        self.pool = get_pool((*others, repr(options)), lambda: make_pool(wrapper))
        # Copy the options: tests in particular change settings in place.
        pool = options.get("pool")
        options = {**options, "pool": {**pool}} if isinstance(pool, dict) else {**options}
        self._settings = (*others, options)

    def serves(self, wrapper: Any) -> bool:
        """Return whether this is still the pool that *wrapper* would get on the running loop."""
        return (
            not self.pool.closed
            and self.pool.loop is get_running_loop()
            and self._settings == pool_settings(wrapper)
        )


def make_pool(wrapper: Any) -> ConnectionPool:
    """Return a new pool for a wrapper's settings, to be started on the running loop."""
    # A wrapper of the pool's own configures the connections, in the pool's context: receivers of
    # connection_created reach this wrapper as connections[alias].
    conf = {**wrapper.settings_dict, "OPTIONS": {**wrapper.settings_dict["OPTIONS"]}}
    owner = type(wrapper)(conf, wrapper.alias)
    owner.configures_pool = True
    options = conf["OPTIONS"].get("pool")
    if wrapper.alias == NO_DB_ALIAS:
        options = {"max_size": 1}
    elif options and conf["CONN_MAX_AGE"] != 0 and wrapper.alias not in _with_pool:
        raise ImproperlyConfigured("Pooling doesn't support persistent connections.")

    async def connect_arguments() -> dict[str, Any]:
        params = owner.get_connection_params()
        if "PGCONNECT_TIMEOUT" not in os.environ:
            # No waiter outlasts the pool's timeout; psycopg's default of 130 s would block the next
            # attempt.
            params.setdefault("connect_timeout", math.ceil(pool.timeout))
        return {
            **{name: value for name, value in params.items() if name not in _FACE_ARGUMENTS},
            "autocommit": True,
        }

    pool = ConnectionPool(
        wrapper.alias,
        options,
        kwargs=connect_arguments,
        configure=lambda pooled: configure(owner, pooled, pool.timeout),
        reset_session=reset_session,
        context_setup=lambda: _set_up_context(owner),
        check=conf["CONN_HEALTH_CHECKS"],
    )
    _with_pool.add(wrapper.alias)
    return pool


def _set_up_context(owner: Any) -> None:
    """Set up the context that a pool's own tasks run in."""
    connections[owner.alias] = owner
    # The pool's tasks are in no transaction, whatever code starts them.
    transactions.set({})


def note_closed(alias: str) -> None:
    """Note a close_pool(): the alias's next pool is its first again."""
    _with_pool.discard(alias)


def configure(owner: Any, pooled: PooledConnection, seconds: float) -> None:
    """Give a new physical connection its face and base state.

    As Django does with its own connections: set the session's time zone and role, check the
    server's version, then send ``connection_created``, whose receivers find the connection on
    *owner*. No statement may take longer than *seconds*.
    """
    pooled.guard = guard
    face = pooled.face = BridgedConnection.make_for(pooled, **owner.get_connection_params())
    face.cancel_timeout = owner.cancel_timeout
    owner.isolation_level = isolation_level(owner)
    if "isolation_level" in owner.settings_dict["OPTIONS"]:
        face.isolation_level = owner.isolation_level
    with face.limited(seconds):
        owner.connection = face
        made = face.setup_statements = []
        try:
            owner.autocommit = True
            owner.init_connection_state()
            connection_created.send(sender=type(owner), connection=owner)
            # Execute wrappers added by receivers are for the connection's borrowers.
            pooled.execute_wrappers, owner.execute_wrappers = owner.execute_wrappers or None, []
        finally:
            owner.connection = face.setup_statements = None
        with psycopg.Cursor(face, row_factory=psycopg.rows.tuple_row) as cursor:
            cursor.execute(snapshot.SNAPSHOT, [snapshot.own_settings(made)])
            *settings, (_, temporary), (_, pid) = cursor.fetchall()
            pooled.has_temporary = temporary == "true"
            # A pooler such as PgBouncer tells its clients process ids of its own.
            face.has_session = int(pid) == face.pgconn.backend_pid
            made_again = snapshot.statements_after_reset(
                settings,
                made,
                user=face.info.user,
                quote=lambda text: psycopg.sql.Literal(text).as_string(face),
            )
            face.reset = Reset(
                snapshot.RESET,
                made_again,
                snapshot.reset_in_transaction(made_again, has_temporary=pooled.has_temporary),
            )
    face.remember()
    face.reset.remember(face)


def reset_session(pooled: PooledConnection) -> None:
    """Give a connection's session back the state that `configure` left, in one message.

    Raise psycopg's error if any statement of the reset fails.
    """
    face = pooled.face
    face.restore()
    face.reset_due = True
    face.reset_now()


def isolation_level(wrapper: Any) -> psycopg.IsolationLevel:
    """Return the isolation level from OPTIONS; READ COMMITTED, PostgreSQL's default, without one.

    Raise ImproperlyConfigured, as Django does, for a value that is no isolation level.
    """
    value = wrapper.settings_dict["OPTIONS"].get(
        "isolation_level", psycopg.IsolationLevel.READ_COMMITTED
    )
    try:
        return psycopg.IsolationLevel(value)
    except ValueError:
        raise ImproperlyConfigured(
            f"Invalid transaction isolation level {value} specified. Use one of the"
            " psycopg.IsolationLevel values."
        ) from None
