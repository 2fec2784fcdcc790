"""The `DatabaseWrapper`: wires the rooms together; behaviour lives in them.

Bridged, a statement's connection is leased from the running loop's pool; anywhere else
Django's own synchronous code runs unchanged.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any
from weakref import finalize

import django
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS
from django.db.backends.base.base import NO_DB_ALIAS

try:
    import psycopg
except ImportError as error:
    raise ImproperlyConfigured(
        "pgbackend needs psycopg 3.3: pip install 'pgbackend[binary]'"
    ) from error

if django.VERSION < (5, 2):
    raise ImproperlyConfigured(
        f"pgbackend needs Django 5.2 or later, this is {django.get_version()}"
    )
if tuple(map(int, psycopg.__version__.split(".")[:2])) < (3, 3):
    raise ImproperlyConfigured(
        f"pgbackend needs psycopg 3.3 or later, this is {psycopg.__version__}"
    )

from .bridge.greenlets import await_bridged
from .bridge.lock import BridgedLock
from .creation import DatabaseCreation
from .features import DatabaseFeatures
from .operations import DatabaseOperations
from .patches.apply import apply
from .pool.face import BridgedConnection
from .pool.open_pools import open_pools
from .pool.options import pool_arguments
from .pool.passwords import without_passwords
from .pool.physical import unread_error
from .session.guard import for_one_use, guard
from .session.row_settings import restore_of_thread
from .sql.instrumented import originals, own_wrapper_class
from .tasks import kept_sessions
from .tasks.handover import LoopProxy
from .tasks.lease import Lease
from .tasks.membership import check_not_outlived, joined_open_transaction
from .tasks.orphans import check_in_no_orphan, open_transactions, orphans
from .tasks.states import States
from .validation import register
from .wrapper.cursors import CursorDebugWrapper, CursorWrapper, LeaseHolder
from .wrapper.opening import PoolForSettings, isolation_level, note_closed
from .wrapper.options import NAMES, Options
from .wrapper.options import check as check_options
from .wrapper.query_log import QueryLogging
from .wrapper.session_defaults import with_session_defaults
from .wrapper.transactions import TransactionControl


@own_wrapper_class
class DatabaseWrapper(QueryLogging, TransactionControl):
    """Django's PostgreSQL wrapper, with leased asynchronous connections in the bridge.

    The wrapper takes Django's own ``OPTIONS`` and those of `options.Options`.
    """

    # Django assigns these attributes without annotations.
    settings_dict: dict[str, Any]
    isolation_level: psycopg.IsolationLevel

    ops_class = DatabaseOperations
    creation_class = DatabaseCreation
    features_class = DatabaseFeatures

    def __init__(self, settings_dict: dict[str, Any], alias: str = DEFAULT_DB_ALIAS) -> None:
        options = Options.of(settings_dict["OPTIONS"])
        self.bridge_enabled = options.bridge
        self.turn_timeout = options.turn_timeout
        self.cancel_timeout = options.cancel_timeout
        self.reset = options.reset
        self._pool_for_settings: PoolForSettings | None = None
        # `_make_alone` holds the lock while it makes a cursor; `_maker` is the task that holds it.
        self._making = BridgedLock(unread_error)
        self._maker: asyncio.Task[Any] | None = None
        # True for the wrapper that a pool uses to configure its connections.
        self.configures_pool = False
        # Settings that the request's threads changed on their connections, per thread and together;
        # see `row_settings`.
        self.settings_of_threads: dict[int, frozenset[str]] = {}
        self.set_in_threads: frozenset[str] = frozenset()
        # The lease that the request keeps for its whole session.
        self.kept_lease: Lease | None = None
        self._states = States(autocommit=settings_dict["AUTOCOMMIT"])
        super().__init__(settings_dict, alias)
        self._states.open()

    # Connecting

    @property
    @without_passwords
    def pool(self) -> Any:
        """Return Django's own pool in synchronous code, the running loop's pool in the bridge."""
        if self.bridged:
            # The configuring wrapper reports no pool, so that Django configures the connection
            # itself.
            return None if self.configures_pool else self.async_pool
        conf = self.settings_dict
        options = conf["OPTIONS"].get("pool")
        if self.alias in self._connection_pools:
            return super().pool
        pool_arguments(self.alias, options)
        if not isinstance(options, dict):
            return super().pool
        # Accept the same options on both sides: psycopg_pool refuses a max_size below min_size,
        # which is 4 by default, and a min_size of 0 without a max_size.
        sizes = {"min_size": min(4, options.get("max_size") or 4)}
        if options.get("min_size") == 0:
            sizes["max_size"] = 4
        self.settings_dict = {**conf, "OPTIONS": {**conf["OPTIONS"], "pool": sizes | options}}
        try:
            return super().pool
        except (TypeError, ValueError) as error:
            raise ImproperlyConfigured(
                f"DATABASES[{self.alias!r}]['OPTIONS']['pool']: {error}"
            ) from error
        finally:
            self.settings_dict = conf

    @without_passwords
    def get_connection_params(self) -> dict[str, Any]:
        """Return psycopg's connection arguments, as Django does, without our options."""
        params = super().get_connection_params()
        for option in NAMES:
            params.pop(option, None)
        return with_session_defaults(self.alias, self.settings_dict["OPTIONS"], params)

    def check_settings(self) -> None:
        """Raise ImproperlyConfigured for settings that are wrong."""
        super().check_settings()
        check_options(self.alias, self.settings_dict["OPTIONS"])

    @without_passwords
    def connect(self) -> None:
        """Connect; bridged, lease a connection that the pool has configured."""
        if not self.bridged:
            super().connect()
            return
        check_not_outlived(self)
        self.check_settings()
        self.isolation_level = isolation_level(self)
        state = self.state
        lease = state.borrow(self.async_pool)
        lease.suspect = self.reset == "always" or lease.pooled.has_temporary
        if lease.pooled.execute_wrappers is not None:
            self.install_execute_wrappers(lease.pooled.execute_wrappers)
        if not self.settings_dict["AUTOCOMMIT"]:
            self._begin(state)

    def _configure_timezone(self, connection: Any) -> bool:
        # Call Django's method even where a test changes the time zone: another time zone has
        # another pool.
        with for_one_use() if self.bridged else nullcontext():
            return bool(super()._configure_timezone(connection))

    def ensure_connection(self) -> None:
        """Connect if necessary; bridged, borrow a connection and give it back."""
        if not self.bridged or self.state.connecting:
            super().ensure_connection()
            return
        lease = self._hold()
        if lease is not None:
            lease.release()

    def is_usable(self) -> bool:
        """Return whether the connection works, by a round trip."""
        if (transaction := self.joined_transaction) is not None:
            return bool(self.hand_over(transaction, transaction.wrapper.is_usable))
        return bool(super().is_usable())

    def close(self) -> None:
        """Close the connection; bridged, give it back to its pool, which rolls it back.

        In a thread that joined a transaction, close only the thread's own connection: the
        transaction's connection belongs to the event loop.
        """
        if not self.bridged and joined_open_transaction(self.alias) is not None:
            self._states.close_shared()
            return
        if self.bridged and self._states.use_kept_session():
            # The connection belongs to the request: closing it would end the request's session.
            return
        super().close()
        if not self.bridged:
            restore_of_thread(self, frozenset())
        else:
            self._states.close_shared()
            if self.alias == NO_DB_ALIAS:
                self.close_pool()

    def close_if_unusable_or_obsolete(self) -> None:
        """Close what a request left behind, but no transaction around the request, such as a
        test's.
        """
        if not (self.bridged and self.in_atomic_block):
            super().close_if_unusable_or_obsolete()

    def _close(self) -> None:
        if self.bridged:
            self.state.give_back()
        else:
            # Django's pool lends the connection to other threads.
            self.forget_characteristics()
            super()._close()

    def close_pool(self) -> None:
        """Close the alias's pools: Django's, and in the bridge those of the running loop."""
        if not self.bridged:
            super().close_pool()
            return
        for pool in open_pools(self.alias):
            await_bridged(pool.close())
        note_closed(self.alias)
        # Close the pool of the threads, too; Django keeps one for each alias. Closing it waits for
        # its workers, so a thread does that.
        of_threads = self._connection_pools.pop(self.alias, None)
        if of_threads is not None:
            await_bridged(asyncio.to_thread(of_threads.close))

    # Cursors

    def cursor(self) -> Any:
        """Return a cursor."""
        return self._make_alone(super().cursor)

    def chunked_cursor(self) -> Any:
        """Return a server-side cursor."""
        return self._make_alone(super().chunked_cursor)

    def _make_alone(self, make: Callable[[], Any]) -> Any:
        """Call *make*, one task at a time where a subclass has its own ``_cursor``.

        Such a subclass may keep state on the wrapper while it makes a cursor; other tasks must not
        see it. django-tenants, for example, notes there that it is setting the search path.
        """
        if type(self)._cursor is DatabaseWrapper._cursor or not self.bridged:
            return make()
        task = asyncio.current_task()
        if self._maker is task:
            return make()
        while True:
            # Wait for the turn before taking the lock: a task that waited inside would block the
            # task that has the turn.
            state = self.state_in_turn()
            with self._making:
                if self.state is not state or not state.has_turn():
                    continue
                self._maker = task
                try:
                    with for_one_use():
                        return make()
                finally:
                    self._maker = None

    def _cursor(self, name: str | None = None) -> Any:
        if not self.bridged:
            return self._cursor_of_thread(name)
        pinned = name is not None
        lease = self._hold(pinned=pinned)
        if pinned and lease is not None and lease.face.autocommit:
            face = lease.face
            # Make a client-side cursor instead: a cursor WITH HOLD would live in a session that the
            # next FETCH may not reach, or that other users may by then have a transaction open in.
            if not face.has_session or kept_sessions.sessions_of_context.get(
                kept_sessions.NO_SESSIONS
            ):
                name, pinned = None, False
                lease.pins -= 1
        try:
            cursor = super()._cursor(name)
        except BaseException:
            if lease is not None:
                lease.release(pinned=pinned)
            raise
        if lease is None:
            pass
        elif isinstance(cursor, LeaseHolder):
            cursor.hold(lease, pinned=pinned)
        else:
            # A custom make_cursor returned an object that holds no lease: release the hold when the
            # object is collected.
            finalize(cursor, lease.release_threadsafe, pinned=pinned)
        return cursor

    def _cursor_of_thread(self, name: str | None) -> Any:
        transaction = self.joined_transaction
        if transaction is None:
            if open_transactions or orphans:
                check_in_no_orphan(self.alias, self.state)
            return super()._cursor(name)
        call = functools.partial(self.hand_over, transaction)
        # Use the public methods: instrumentations replace those.
        wrapper = transaction.wrapper
        return LoopProxy(call(wrapper.cursor if name is None else wrapper.chunked_cursor), call)

    def create_cursor(self, name: str | None = None) -> Any:
        """Return a psycopg cursor, for a wrapper of Django's."""
        cursor = super().create_cursor(name)
        # Django makes a server-side cursor directly from its own class and does not call the
        # connection's `cursor()`, so guard the cursor here.
        ours = isinstance(getattr(cursor, "connection", None), BridgedConnection)
        return guard(cursor, wrapped=True) if ours else cursor

    def make_cursor(self, cursor: Any) -> CursorWrapper:
        """Wrap a psycopg cursor."""
        return CursorWrapper(cursor, self)

    def make_debug_cursor(self, cursor: Any) -> CursorDebugWrapper:
        """Wrap a psycopg cursor so that its queries are logged."""
        return CursorDebugWrapper(cursor, self)


# A project names only this module in its settings, so importing it installs everything.
apply()
register()
originals()
