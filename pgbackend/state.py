"""What Django keeps on a `DatabaseWrapper` but tasks must not share.

Each task that uses a wrapper has a `ConnectionState` of its own, and so has the wrapper's
thread. While a transaction is open on a task's state, tasks started in it share that state:
their statements run on its connection, in turns.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable
from contextvars import ContextVar
from threading import get_ident
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

from greenlet import getcurrent

from .bridge import await_bridged, on_exit
from .lease import Lease

if TYPE_CHECKING:
    from .pool import ConnectionPool


class Frame:
    """One entered ``atomic`` of a task: what decides whose turn it is in a transaction."""

    __slots__ = ("context", "left", "outer", "state", "task", "wrapper")

    def __init__(self, state: ConnectionState, wrapper: object, outer: Frame | None) -> None:
        self.state = state
        self.wrapper = wrapper
        self.outer = outer
        self.task = asyncio.current_task()
        self.context = getcurrent().gr_context
        self.left = False


class Transaction:
    """What tasks started inside a transaction share, and what tells them that it has ended."""

    __slots__ = ("owner", "state", "wrapper")

    def __init__(self, wrapper: object, state: ConnectionState, owner: asyncio.Task[Any]) -> None:
        self.wrapper = wrapper
        self.state = state
        self.owner = ref(owner)

    @property
    def open(self) -> bool:
        """Whether it is still the one that binds its state's lease."""
        return self.state.transaction is self


# The innermost frame entered in this context. Tasks inherit it from the one that starts them.
_innermost: ContextVar[Frame | None] = ContextVar("pgbackend_frame", default=None)

# The transactions of this context, by wrapper. Inherited likewise.
_transactions: ContextVar[dict[object, Transaction]] = ContextVar("pgbackend_transactions")


class ConnectionState:
    """The attributes of a `DatabaseWrapper` that belong to one task, or to its thread.

    Names and meaning are those of `django.db.backends.base.base.BaseDatabaseWrapper`.
    """

    def __init__(self, *, autocommit: bool | None = None) -> None:
        # What AUTOCOMMIT says, for a task: its state has it before there is a connection.
        # None for a thread, whose connection Django opens, initializes and keeps itself.
        self._initial_autocommit = autocommit
        # The synchronous path's own psycopg connection; see the property `connection`.
        self._own_connection: Any = None
        self.lease: Lease | None = None
        # True while a holder waits for Django's `ensure_connection` to make the lease.
        self.connecting = False
        # Pins the lease while autocommit is off.
        self.transaction: Transaction | None = None
        self.frames: list[Frame] = []
        self._queue: list[asyncio.Future[None]] = []
        self.reset()

    def reset(self) -> None:
        """Set Django's attributes to what they are before the first connection."""
        self.autocommit = bool(self._initial_autocommit)
        self.in_atomic_block = False
        self.savepoint_state = 0
        self.savepoint_ids: list[str | None] = []
        self.atomic_blocks: list[Any] = []
        self.commit_on_exit = True
        self.needs_rollback = False
        self.rollback_exc: BaseException | None = None
        self.close_at: float | None = None
        self.closed_in_transaction = False
        self.errors_occurred = False
        self.health_check_enabled = False
        self.health_check_done = False
        self.run_on_commit: list[Any] = []
        self.run_commit_hooks_on_set_autocommit_on = False

    @property
    def connection(self) -> Any:
        """The DB-API connection in hand, or None."""
        return self.lease.face if self.lease is not None else self._own_connection

    @connection.setter
    def connection(self, value: Any) -> None:
        self._own_connection = value
        if value is None and self._initial_autocommit is not None:
            # Django's way to forget a connection, with the transaction on it.
            self.drop()
            self.unbind()
            self._leave_all_frames()
            self.reset()

    def borrow(self, pool: ConnectionPool) -> Lease:
        """Check a connection out of *pool*, waiting through the bridge.

        Whoever is `connecting` holds the lease at once.
        """
        pooled = await_bridged(pool.checkout())
        self.lease = Lease(self, pool, pooled)
        if self.connecting:
            self.lease.hold()
        on_exit(self.call_ended)
        return self.lease

    def call_ended(self) -> None:
        """Give back what only cursors left open in the ended bridged call still hold."""
        if self.lease is not None and not self.lease.pins:
            self.lease.give_back()

    def drop(self) -> None:
        """Give the lease back, whoever holds it."""
        if self.lease is not None:
            self.lease.give_back()

    # Transactions

    def bind(self, wrapper: object) -> None:
        """Pin the lease until `unbind`; tasks started from here on share this state."""
        task = asyncio.current_task()
        assert self.lease is not None
        assert task is not None
        self.lease.hold(pinned=True)
        self.transaction = Transaction(wrapper, self, task)
        task.add_done_callback(self._owner_ended)
        _transactions.set({**_transactions.get({}), wrapper: self.transaction})

    def unbind(self) -> None:
        """Let go of what `bind` pinned; without effect if nothing is."""
        transaction, self.transaction = self.transaction, None
        if transaction is None:
            return
        if (owner := transaction.owner()) is not None:
            owner.remove_done_callback(self._owner_ended)
        transactions = _transactions.get({})
        if transactions.get(transaction.wrapper) is transaction:
            _transactions.set(
                {key: each for key, each in transactions.items() if each is not transaction}
            )
        if self.lease is not None:
            self.lease.let_go(pinned=True)

    def _owner_ended(self, task: asyncio.Task[Any]) -> None:
        """Roll back a transaction whose task ended without ending it."""
        self.transaction = None
        self.drop()
        self._leave_all_frames()
        warnings.warn(
            f"{task.get_name()} ended inside a transaction: it was rolled back."
            " Leave `atomic`, or call commit() or rollback(), in the task that began it",
            ResourceWarning,
            stacklevel=1,
        )

    # Turns

    def has_turn(self) -> bool:
        """Return whether the innermost frame is the running task's or an ancestor's."""
        if not self.frames:
            return True
        top = self.frames[-1]
        if top.task is asyncio.current_task():
            return True
        frame = _innermost.get()
        while frame is not None and frame is not top:
            frame = frame.outer
        # Tasks that share one Context see each other's frames without being ancestors.
        return frame is not None and frame.context is not getcurrent().gr_context

    def take_turn(self, timeout: float) -> None:
        """Wait until the running task may use the transaction.

        Raise RuntimeError that names the holder after *timeout* seconds.
        """
        if not self.has_turn():
            await_bridged(self._wait_until(self.has_turn, timeout))

    def take_turn_to_leave(self, frame: Frame, timeout: float) -> None:
        """Wait until *frame* is on top: until tasks that entered inside it have left."""

        def on_top() -> bool:
            return frame.left or self.frames[-1] is frame

        if not on_top():
            await_bridged(self._wait_until(on_top, timeout))

    async def _wait_until(self, ready: Callable[[], bool], seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not ready():
                    turn = asyncio.get_running_loop().create_future()
                    self._queue.append(turn)
                    await turn
        except TimeoutError:
            holder = self.frames[-1].task if self.frames else None
            name = holder.get_name() if holder is not None else "a task that ended"
            raise RuntimeError(
                f"waited {seconds:g} s for a turn in the transaction: {name} is inside an"
                " atomic() and has not left it. See 'turn_timeout' in OPTIONS"
            ) from None

    def enter_frame(self, wrapper: object) -> Frame:
        """Push a frame for an ``atomic`` that the running task enters."""
        frame = Frame(self, wrapper, _innermost.get())
        self.frames.append(frame)
        _innermost.set(frame)
        return frame

    def leave_frame(self, frame: Frame) -> None:
        """Remove a frame pushed by `enter_frame` and let the next task have its turn."""
        frame.left = True
        if frame in self.frames:
            self.frames.remove(frame)
        if _innermost.get() is frame:
            _innermost.set(frame.outer)
        self._wake()

    def _leave_all_frames(self) -> None:
        for frame in self.frames:
            frame.left = True
        self.frames.clear()
        self._wake()

    def _wake(self) -> None:
        queue, self._queue = self._queue, []
        for turn in queue:
            if not turn.done():
                turn.set_result(None)


def innermost_frame(wrapper: object) -> Frame | None:
    """Return the running task's innermost frame on *wrapper*, also one that is gone."""
    task = asyncio.current_task()
    frame = _innermost.get()
    while frame is not None and (frame.task is not task or frame.wrapper is not wrapper):
        frame = frame.outer
    return frame


def state_attribute(name: str) -> Any:
    """Return a property of a wrapper that reads and writes *name* on the current state."""

    def read(wrapper: Any) -> Any:
        return getattr(wrapper.state, name)

    def write(wrapper: Any, value: Any) -> None:
        setattr(wrapper.state, name, value)

    return property(read, write, doc=f"`{name}` of the running task, or of the thread.")


class States:
    """The states of one wrapper."""

    def __init__(self, *, autocommit: bool) -> None:
        self._autocommit = autocommit
        self._thread = get_ident()
        self._of_thread = ConnectionState()
        self._of_tasks: WeakKeyDictionary[asyncio.Task[Any], ConnectionState] = WeakKeyDictionary()

    def are_of_this_thread(self) -> bool:
        """Return whether the wrapper was made in the calling thread.

        Another thread's wrapper may be shared (Django's test servers do): its connection is
        that thread's, also when it is used by a task here.
        """
        return self._thread == get_ident()

    def close_shared(self) -> None:
        """Close the connection of a thread with which the wrapper was shared, if there is one."""
        connection = self._of_thread.connection
        if connection is not None:
            self._of_thread.connection = None
            connection.close()

    def current(self, wrapper: object) -> ConnectionState:
        """Return the state of the running task; the thread's where no task runs."""
        try:
            task = asyncio.current_task()
        except RuntimeError:
            return self._of_thread
        if task is None or not self.are_of_this_thread():
            return self._of_thread
        state = self._of_tasks.get(task)
        if state is None or state.transaction is None:
            inherited = _transactions.get({}).get(wrapper)
            if inherited is not None and inherited.open:
                return inherited.state
        if state is None:
            state = self._of_tasks[task] = ConnectionState(autocommit=self._autocommit)
        return state


def check_not_outlived(wrapper: object) -> None:
    """Raise RuntimeError in a task that was started in a transaction which has ended."""
    inherited = _transactions.get({}).get(wrapper)
    if (
        inherited is not None
        and not inherited.open
        and inherited.owner() is not asyncio.current_task()
    ):
        raise RuntimeError(
            "this task was started inside a transaction that has ended; its queries can no"
            " longer be part of it. Await the task inside the transaction, or start it from"
            " transaction.on_commit()"
        )
