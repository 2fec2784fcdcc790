"""The `DatabaseWrapper`: wires the rooms together; behaviour lives in them.

Bridged, a statement's connection is leased from the running loop's pool; anywhere else
Django's own synchronous code runs unchanged.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
from collections.abc import Callable
from typing import Any
from weakref import finalize

import django
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.db import DEFAULT_DB_ALIAS, InternalError, OperationalError
from django.db.backends.base.base import NO_DB_ALIAS
from django.db.backends.utils import debug_transaction

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

from django.db.backends.postgresql.base import DatabaseWrapper as PostgresDatabaseWrapper

from .bridge import await_bridged, is_bridged
from .creation import DatabaseCreation
from .cursor import CursorDebugWrapper, CursorWrapper, LeaseHolder
from .errors import CommitInDoubt
from .features import DatabaseFeatures
from .hooks import Hook
from .joining import Transaction, check_not_outlived, joined, joined_if_open
from .lease import Lease
from .opening import isolation_level, make_pool, pool_key
from .operations import DatabaseOperations
from .pool import ConnectionPool, get_pool, open_pools, pool_arguments
from .state import ConnectionState, States, state_attribute
from .threads import Handed, ahand_over, hand_over
from .turns import Frame, innermost_frame
from .wrapping import Instrumentation

# Seconds a task waits for its turn in a transaction it shares; OPTIONS["turn_timeout"].
TURN_TIMEOUT = 30.0

# Numbers the server-side cursors of threads that joined a transaction.
_handed = itertools.count(1)


class DatabaseWrapper(Instrumentation, PostgresDatabaseWrapper):
    """Django's PostgreSQL wrapper, with leased asynchronous connections in the bridge.

    Beside Django's own ``OPTIONS``: ``bridge`` (default True; False keeps the alias on
    Django's own path everywhere), ``turn_timeout`` (seconds, default 30.0), ``reset`` (default
    "dirty": a session is reset after statements that may have changed it; "always").
    """

    # Django's, which is untyped, assigns them.
    settings_dict: dict[str, Any]
    isolation_level: psycopg.IsolationLevel

    ops_class = DatabaseOperations
    creation_class = DatabaseCreation
    features_class = DatabaseFeatures

    def __init__(self, settings_dict: dict[str, Any], alias: str = DEFAULT_DB_ALIAS) -> None:
        options = settings_dict["OPTIONS"]
        self._states = States(autocommit=settings_dict["AUTOCOMMIT"])
        self.bridge_enabled = options.get("bridge", True)
        if not isinstance(self.bridge_enabled, bool):
            raise ImproperlyConfigured(
                f"DATABASES[{alias!r}]['OPTIONS']['bridge'] is True or False, not"
                f" {self.bridge_enabled!r}"
            )
        # True for the wrapper by which a pool configures its connections.
        self.configures_pool = False
        # What receivers of connection_created execute meanwhile, with parameters.
        self.configured: list[tuple[str, Any]] = []
        self._turn_timeout = options.get("turn_timeout", TURN_TIMEOUT)
        if not isinstance(self._turn_timeout, int | float):
            raise ImproperlyConfigured(
                f"DATABASES[{alias!r}]['OPTIONS']['turn_timeout'] is a number of seconds, not"
                f" {self._turn_timeout!r}"
            )
        self.reset = options.get("reset", "dirty")
        if self.reset not in ("dirty", "always"):
            raise ImproperlyConfigured(
                f"DATABASES[{alias!r}]['OPTIONS']['reset'] is 'dirty' or 'always', not"
                f" {self.reset!r}"
            )
        super().__init__(settings_dict, alias)
        self._states.open()

    # What Django keeps on the wrapper and tasks must not share.

    connection = state_attribute("connection")
    autocommit = state_attribute("autocommit")
    in_atomic_block = state_attribute("in_atomic_block")
    savepoint_state = state_attribute("savepoint_state")
    savepoint_ids = state_attribute("savepoint_ids")
    atomic_blocks = state_attribute("atomic_blocks")
    commit_on_exit = state_attribute("commit_on_exit")
    needs_rollback = state_attribute("needs_rollback")
    rollback_exc = state_attribute("rollback_exc")
    close_at = state_attribute("close_at")
    closed_in_transaction = state_attribute("closed_in_transaction")
    errors_occurred = state_attribute("errors_occurred")
    health_check_enabled = state_attribute("health_check_enabled")
    health_check_done = state_attribute("health_check_done")
    run_on_commit = state_attribute("run_on_commit")
    run_commit_hooks_on_set_autocommit_on = state_attribute("run_commit_hooks_on_set_autocommit_on")

    @property
    def state(self) -> ConnectionState:
        """The state of the running task, or of the thread."""
        return self._states.current(self)

    @property
    def bridged(self) -> bool:
        """Whether the caller's statements run on leased connections."""
        return self.bridge_enabled and is_bridged() and self._states.are_of_this_thread()

    @property
    def joined(self) -> Transaction | None:
        """The loop's transaction that the calling thread joined; see `joining.joined`."""
        if not self.bridge_enabled or self.bridged:
            return None
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return joined(self.alias)
        return None

    def hand_over(self, transaction: Transaction, function: Callable[..., Any], *args: Any) -> Any:
        """Run *function*, of a joined *transaction*, on the loop and return its result."""
        return hand_over(self, transaction, self._turn_timeout, function, *args)

    async def ahand_over(
        self, transaction: Transaction, function: Callable[..., Any], *args: Any
    ) -> Any:
        """Do what `hand_over` does, for a coroutine on another loop."""
        return await ahand_over(self, transaction, self._turn_timeout, function, *args)

    def check_not_on_loop(self) -> None:
        """Raise SynchronousOnlyOperation on a running event loop outside the bridge."""
        if is_bridged() or os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE"):
            return
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
        raise SynchronousOnlyOperation(
            f"The synchronous ORM was used on the running event loop (alias {self.alias!r})."
            " Await the asynchronous form, as in `await queryset.aget()`,"
            " `async for row in queryset` or `await instance.asave()`; or decorate the function"
            " with @pgbackend.bridged and await it."
        )

    # Connecting

    @property
    def pool(self) -> Any:
        """Django's own pool for synchronous code; in the bridge the running loop's."""
        if self.bridged:
            # None for the wrapper that configures connections: Django then does it.
            return None if self.configures_pool else self.async_pool
        conf = self.settings_dict
        options = conf["OPTIONS"].get("pool")
        if not isinstance(options, dict):
            return super().pool
        # The same options are good on both sides: psycopg_pool would refuse a max_size below
        # its min_size, 4 unless said otherwise.
        sizes = {"min_size": min(4, options.get("max_size") or 4)}
        pool_arguments(self.alias, options)
        self.settings_dict = {**conf, "OPTIONS": {**conf["OPTIONS"], "pool": sizes | options}}
        try:
            return super().pool
        except (TypeError, ValueError) as error:
            raise ImproperlyConfigured(
                f"DATABASES[{self.alias!r}]['OPTIONS']['pool']: {error}"
            ) from error
        finally:
            self.settings_dict = conf

    @property
    def async_pool(self) -> ConnectionPool:
        """The running loop's pool for this wrapper's settings, opened on first use."""
        return get_pool(pool_key(self), lambda: make_pool(self))

    def get_connection_params(self) -> dict[str, Any]:
        """Return psycopg's connection arguments, as Django does, without our options."""
        params = super().get_connection_params()
        for option in ("bridge", "turn_timeout", "reset"):
            params.pop(option, None)
        return params  # type: ignore[no-any-return]

    def connect(self) -> None:
        """Connect; bridged, lease a connection that the pool has configured."""
        if not self.bridged:
            super().connect()
            return
        check_not_outlived(self)
        self.check_settings()
        self.isolation_level = isolation_level(self)
        lease = self.state.borrow(self.async_pool)
        lease.dirty = self.reset == "always"
        if not self.settings_dict["AUTOCOMMIT"]:
            self._begin()

    def try_connection(self) -> None:
        """Borrow a connection and give it back, as ``ensure_connection()`` does when bridged."""
        lease = self._hold()
        if lease is not None:
            lease.let_go()

    def _hold(self, *, pinned: bool = False) -> Lease | None:
        """Hold the task's lease, taking its turn and borrowing a connection if need be.

        Return None for the connection that is being configured: no lease is needed there.
        """
        state = self.state_in_turn()
        if state.lease is not None:
            state.lease.hold(pinned=pinned)
        elif state.connection is None:
            state.connecting = True
            try:
                # Django's own, which the guards of its test cases replace; ends in `connect`.
                self.ensure_connection()
            finally:
                state.connecting = False
            if pinned and state.lease is not None:
                state.lease.pins += 1
        return state.lease

    def pin(self) -> Lease | None:
        """Hold the task's lease beyond the bridged call; its session is reset in the end."""
        lease = self._hold(pinned=True)
        if lease is not None:
            lease.dirty = True
            task = asyncio.current_task()
            assert task is not None
            task.add_done_callback(lease.owner_ended)
        return lease

    def unpin(self, lease: Lease) -> None:
        """Undo `pin`, in the task that called it."""
        task = asyncio.current_task()
        assert task is not None
        task.remove_done_callback(lease.owner_ended)
        if lease.on_loan:
            lease.let_go(pinned=True)

    def state_in_turn(self) -> ConnectionState:
        """Return the running task's state when it is the task's turn to use it."""
        while True:
            state = self.state
            if state.has_turn():
                return state
            # Meanwhile the transaction may end, and the task with a state of its own.
            state.take_turn(self._turn_timeout)

    def is_usable(self) -> bool:
        """Return whether the connection works, by a round trip."""
        if (transaction := self.joined) is not None:
            return bool(self.hand_over(transaction, transaction.wrapper.is_usable))
        return bool(super().is_usable())

    def close(self) -> None:
        """Close the connection; bridged, give it back to its pool, which rolls it back.

        In a thread that joined a transaction, only the thread's own: the other is the loop's.
        """
        if not self.bridged and joined_if_open(self.alias) is not None:
            self._states.close_shared()
            return
        super().close()
        if self.bridged:
            self._states.close_shared()
            if self.alias == NO_DB_ALIAS:
                self.close_pool()

    def close_if_unusable_or_obsolete(self) -> None:
        """Close what a request left behind, but not a transaction around it, as a test's."""
        if not (self.bridged and self.in_atomic_block):
            super().close_if_unusable_or_obsolete()

    def _close(self) -> None:
        if self.bridged:
            self.state.drop()
        else:
            super()._close()

    def close_pool(self) -> None:
        """Close the alias's pools: Django's, or in the bridge those of the running loop."""
        if not self.bridged:
            super().close_pool()
            return
        for pool in open_pools(self.alias):
            await_bridged(pool.close())

    # Cursors

    def _cursor(self, name: str | None = None) -> Any:
        if not self.bridged:
            return self._cursor_of_thread(name)
        pinned = name is not None
        lease = self._hold(pinned=pinned)
        try:
            cursor = super()._cursor(name)
        except BaseException:
            if lease is not None:
                lease.let_go(pinned=pinned)
            raise
        if lease is None:
            pass
        elif isinstance(cursor, LeaseHolder):
            cursor.hold(lease, pinned=pinned)
        else:
            # Somebody's own make_cursor: the lease lasts as long as the object.
            finalize(cursor, lease.let_go, pinned=pinned)
        return cursor

    def _cursor_of_thread(self, name: str | None) -> Any:
        transaction = self.joined
        if transaction is None:
            return super()._cursor(name)
        call = functools.partial(self.hand_over, transaction)
        if name is not None:
            # Django's has the thread's number, which one that begins later may have as well.
            name = f"{name}_{next(_handed)}"
        return Handed(call(transaction.wrapper._cursor, name), call)

    def make_cursor(self, cursor: Any) -> CursorWrapper:
        """Wrap a psycopg cursor."""
        return CursorWrapper(cursor, self)

    def make_debug_cursor(self, cursor: Any) -> CursorDebugWrapper:
        """Wrap a psycopg cursor so that its queries are logged."""
        return CursorDebugWrapper(cursor, self)

    # Transactions

    def get_autocommit(self) -> bool:
        """Return the autocommit state; on the event loop, without a connection."""
        if self.bridged:
            return bool(self.autocommit)
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return bool(super().get_autocommit())
        if not self.bridge_enabled:
            return bool(super().get_autocommit())
        from .routing import runs_bridged, thread_transactions  # which needs this module

        if runs_bridged(self.alias):
            return bool(self.autocommit)
        # The connection is that of a thread that waits.
        if self.alias in thread_transactions.get() or joined_if_open(self.alias) is not None:
            return False
        return bool(self.settings_dict["AUTOCOMMIT"])

    def set_autocommit(
        self, autocommit: bool, force_begin_transaction_with_broken_autocommit: bool = False
    ) -> None:
        """Enable or disable autocommit; bridged, off binds a lease and on gives it back.

        The hooks of `on_commit` run after the connection was given back: they may wait for
        tasks that need one.
        """
        if (transaction := self.joined) is not None:
            self.hand_over(transaction, transaction.wrapper.set_autocommit, autocommit)
            return
        if not self.bridged:
            super().set_autocommit(autocommit, force_begin_transaction_with_broken_autocommit)
            return
        self.validate_no_atomic_block()
        if not autocommit:
            self._begin()
            return
        state = self.state
        if state.connection is not None:
            self._set_autocommit(True)
        state.unbind()
        state.autocommit = True
        if state.run_commit_hooks_on_set_autocommit_on:
            self.run_and_clear_commit_hooks()
            state.run_commit_hooks_on_set_autocommit_on = False

    def commit(self) -> None:
        """Commit, and run the hooks of `on_commit`."""
        if (transaction := self.joined) is not None:
            self.hand_over(transaction, transaction.wrapper.commit)
            return
        if self.bridged:
            self.state_in_turn()
        super().commit()

    def rollback(self) -> None:
        """Roll back, and forget the hooks of `on_commit`."""
        if (transaction := self.joined) is not None:
            self.hand_over(transaction, transaction.wrapper.rollback)
            return
        if self.bridged:
            self.state_in_turn()
        super().rollback()

    def on_commit(self, func: Callable[[], Any], robust: bool = False) -> None:
        """Call *func* after the commit, and wait for a coroutine that it returns."""
        try:
            super().on_commit(Hook(func) if callable(func) else func, robust)
        except SynchronousOnlyOperation:
            raise SynchronousOnlyOperation(
                "on_commit() was called on a running event loop, outside the bridge and outside"
                " a transaction of this task: `await pgbackend.transaction.aon_commit(...)`"
            ) from None

    def _commit(self) -> None:
        connection = self.connection
        if self.bridged and connection is not None and connection.is_aborted:
            # The server would answer COMMIT with ROLLBACK, which psycopg takes for success.
            raise InternalError(
                "the transaction cannot be committed: a statement in it was stopped by a"
                " cancellation or a time-out. Let that leave the atomic block, or put the"
                " statement into a nested one"
            )
        try:
            self._end_transaction(super()._commit)
        except OperationalError as error:
            if self.bridged and connection is not None and connection.closed:
                raise CommitInDoubt(*error.args) from error.__cause__
            raise

    def _rollback(self) -> None:
        self._end_transaction(super()._rollback)

    def _end_transaction(self, end: Callable[[], None]) -> None:
        """COMMIT or ROLLBACK; interrupted, drop the connection instead of its state.

        `Atomic` handles database errors only: after a cancelled COMMIT it would keep a
        state in which the next transaction reports success and commits nothing.
        """
        try:
            end()
        except BaseException as error:
            if self.bridged and not isinstance(error, Exception):
                self.connection = None
            raise

    def frame_to_leave(self, *, failed: bool) -> Frame | None:
        """Return the running task's innermost frame when it is on top; None if it is gone.

        Raise RuntimeError if the transaction ended meanwhile and the block did not fail: what
        it did was not committed.
        """
        frame = innermost_frame(self)
        if frame is not None and not frame.left:
            try:
                if failed and frame.is_outermost and self.commit_on_exit:
                    frame.state.end_for_others(frame)
                frame.state.take_turn_to_leave(frame, self._turn_timeout)
            except BaseException:
                # Whoever has the turn never gave it back: end the transaction for all.
                self.connection = None
                raise
        # Asked after the wait: meanwhile the transaction may have ended.
        if frame is not None and not frame.left:
            return frame
        if failed:
            return None
        raise RuntimeError(
            "the transaction of this atomic block has ended already, since the block of the task"
            " that began it failed, or that task ended: nothing of it was committed"
        )

    def _begin(self) -> None:
        """Turn autocommit off and bind the lease; the server's BEGIN comes with a statement."""
        lease = self._hold()
        try:
            with debug_transaction(self, "BEGIN"):
                self._set_autocommit(False)
            state = self.state
            if lease is not None and state.transaction is None:
                state.bind(self)
            state.autocommit = False
        finally:
            if lease is not None:
                lease.let_go()


from . import patches  # noqa: E402  # needs the wrapper above; a project names this module only

patches.apply()
