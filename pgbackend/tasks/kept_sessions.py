"""The sessions that requests keep, shared by the tasks started in those requests."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from contextvars import ContextVar
from typing import Any
from weakref import ref

from greenlet import getcurrent

from .transaction import Transaction


class KeptSession:
    """A connection that a request keeps for its session; tasks started later use it, too."""

    __slots__ = ("_context", "_lease", "_loop", "owner", "state")

    # *lease* is a `lease.Lease`; the type cannot be imported here.
    def __init__(self, lease: Any, owner: asyncio.Task[Any] | None, context: Any) -> None:
        self.owner = ref(owner) if owner is not None else _nobody
        self.state: Any = lease.state
        self._lease = lease
        self._loop = asyncio.get_running_loop()
        self._context = context

    @property
    def is_kept(self) -> bool:
        """Whether the session is still kept."""
        return bool(self._lease.on_loan and self._lease.session_pins > 0)

    @property
    def settings(self) -> frozenset[str]:
        """The settings of `row_settings` that were made in the session."""
        settings: frozenset[str] = self._lease.settings
        return settings

    def is_of(self, lease: object) -> bool:
        """Return whether *lease* is the lease of this session."""
        return self._lease is lease

    @property
    def is_inherited(self) -> bool:
        """Whether the running task was started in the session, directly or indirectly."""
        owner, context = self.owner(), self._context
        return owner is not asyncio.current_task() and context is not getcurrent().gr_context

    def check_loop(self) -> None:
        """Raise RuntimeError on another event loop: its tasks cannot wait for the connection."""
        if self._loop is not asyncio.get_running_loop():
            raise RuntimeError(
                "this task runs on another event loop than the request it was started in, which"
                " keeps a connection for its session; start that loop inside `with"
                " pgbackend.transaction.detached():`"
            )


def _nobody() -> None:
    return None


# The kept sessions of this context, by the `states.States` of their wrappers.
sessions_of_context: ContextVar[dict[object, KeptSession]] = ContextVar("pgbackend_sessions")

NO_SESSIONS: dict[object, KeptSession] = {}


def share_session(lease: Any, transaction: Transaction | None) -> None:
    """Let tasks that the owner of *lease* starts from now on use the kept session.

    *transaction* is the one in which the running task, possibly a child of the owner, caused the
    session to be kept.
    """
    states = lease.state.states()
    if states is None:
        return
    here = getcurrent().gr_context
    if transaction is None or transaction.context is here:
        session = KeptSession(lease, asyncio.current_task(), here)
        sessions_of_context.set({**sessions_of_context.get({}), states: session})
        return
    session = KeptSession(lease, transaction.owner(), transaction.context)
    sessions_of_context.set({**sessions_of_context.get({}), states: session})
    if transaction.context is not None:
        # Set the session in the owner's context, too, for tasks that the owner starts later. That
        # fails if this task was started eagerly, in the middle of the owner's step.
        with suppress(RuntimeError):
            transaction.context.run(
                lambda: sessions_of_context.set({**sessions_of_context.get({}), states: session})
            )


def unshare_session(lease: object) -> None:
    """Undo `share_session` in this context."""
    entered = sessions_of_context.get(None)
    if entered:
        sessions_of_context.set(
            {key: each for key, each in entered.items() if not each.is_of(lease)}
        )


def kept_session(states: object) -> KeptSession | None:
    """Return the kept session that the running task was started in, or None."""
    session = sessions_of_context.get({}).get(states)
    if session is None or not session.is_kept or not session.is_inherited:
        return None
    session.check_loop()
    return session
