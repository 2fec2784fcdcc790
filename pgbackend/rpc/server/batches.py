"""The trees of one message: their transactions, and what becomes of them when one fails."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from django.db import (
    DatabaseError,
    IntegrityError,
    InterfaceError,
    connections,
    router,
    transaction,
)

from ...bridge.current import is_bridged
from ...extending import own_cursor, runs_on_loop, takes_several
from ..protocol.answers import Outcome
from ..protocol.errors import (
    BadValue,
    DeadlinePassed,
    NotRun,
    OperationNotAllowed,
    RemoteError,
    Replayed,
)
from ..protocol.messages import Message
from ..protocol.names import WRITES
from ..protocol.nodes import Tree
from ..protocol.values import encode
from .ahead import Ahead, Apart
from .describe import describe
from .failures import failure
from .methods import call, method_of
from .operations import open_scope
from .reads import read
from .registry import exposure_of
from .replay import Nonce, Stored
from .sending import sendable
from .session import Session
from .settings import Service
from .writes import write

# Until the end of the transaction.
_TIMEOUT = "SELECT set_config('statement_timeout', %s, true)"


class _RolledBack(Exception):
    """Ends the transaction of a message that is only tried."""


class Batch:
    """Runs the trees of *message*, in order; `run` returns an outcome for each.

    *alias* is the database of all of them; None: the router says.
    """

    def __init__(self, message: Message, service: Service, *, alias: str | None = None) -> None:
        self.message = message
        self._given_alias = alias
        self.service = service
        self.session = Session(
            service.principal(message.principal, message.key_id), service.limits, open_scope
        )
        self.outcomes: list[Outcome] = []
        # To be noted by the first transaction, in the database of the first tree.
        self._nonce: Nonce | None = None
        self._ahead = Ahead(self.session, message.trees, self._alias)
        # Whether nothing follows the tree that is run in its transaction.
        self._is_last = False

    def takes(self, nonce: Nonce) -> bool:
        """Return whether the first transaction notes *nonce*, with its first statement."""
        if not is_bridged() or self.message.atomic or self.message.dry:
            return False
        try:
            alias = self._alias(self.message.trees[0])
        except Exception:
            # The tree meets the error by itself.
            return False
        if alias != nonce.alias or not runs_on_loop(alias) or connections[alias].in_atomic_block:
            return False
        self._nonce = nonce
        return True

    def run(self) -> list[Outcome]:
        """Return what came of each tree."""
        if self.message.atomic or self.message.dry:
            self._run_together()
        else:
            while len(self.outcomes) < len(self.message.trees):
                self._run_next()
        return self.outcomes

    # Trees by themselves

    def _run_next(self) -> None:
        """Run the next tree, a write, or all reads up to the next one, in a transaction."""
        index = len(self.outcomes)
        tree = self.message.trees[index]
        try:
            # The router may name another one the next time.
            alias = self._nonce.alias if self._nonce else self._alias(tree)
            if alias is None:
                self._take(self._result(tree, index, ""))
            elif _writes(tree):
                with self._transaction(alias):
                    found = self._stored(tree, index, alias)
                self._take(found)
            else:
                self._run_reads(alias)
        except Apart:
            self._note()
        except Exception as error:
            if self._nonce is not None:
                # Nothing was run.
                raise
            # One that a read has raised was taken already, unless it was the server's.
            self._fail(tree, error)

    def _run_reads(self, alias: str) -> None:
        """Run reads in one transaction until another tree comes, or the server refuses one."""
        with self._transaction(alias):
            while len(self.outcomes) < len(self.message.trees):
                index = len(self.outcomes)
                tree = self.message.trees[index]
                try:
                    if index not in self._ahead:
                        if self._alias(tree) != alias or _writes(tree):
                            return
                        self._ahead.look(index, alias)
                    self._take(self._read(tree, index, alias))
                except (DatabaseError, InterfaceError, Apart):
                    # It has ended the transaction; the reads after this one have another.
                    raise
                except Exception as error:
                    self._fail(tree, error)

    def _note(self) -> None:
        """Note the nonce by itself, where no statement of the first transaction has done so."""
        if self._nonce is not None:
            self._nonce.check()
            self._nonce = None

    def _read(self, tree: Tree, index: int, alias: str) -> Any:
        if index not in self._ahead:
            self._is_last = index == len(self.message.trees) - 1
            return self._result(tree, index, alias)
        self._seconds_left()
        return self._ahead.take(index)

    def _take(self, value: Any) -> None:
        self.session.results.append(value)
        self.outcomes.append(Outcome(value))

    def _fail(self, tree: Tree, error: Exception) -> None:
        if len(self.outcomes) == len(self.message.trees):
            # The end of a transaction that had only read.
            return
        self.session.failed.add(len(self.outcomes))
        self.session.results.append(None)
        self.outcomes.append(Outcome(error=self._failure(tree, error)))

    def _failure(self, tree: Tree, error: Exception) -> RemoteError:
        name = tree.end.name
        return failure(
            error, self.service, of_values=name != "call", quoted=name not in WRITES | {"call"}
        )

    # Trees in one transaction

    def _run_together(self) -> None:
        """Run all trees in one transaction: all of them, or none."""
        try:
            aliases = {self._alias(tree) for tree in self.message.trees} - {None}
            if len(aliases) > 1:
                raise OperationNotAllowed("the models are in several databases: no transaction")
            if not aliases:
                self._run_all("")
                return
            (alias,) = aliases
            assert alias is not None
            with self._transaction(alias):
                self._run_all(alias)
                if self.message.dry:
                    raise _RolledBack
        except _RolledBack:
            pass
        except Exception as error:
            self._fail_together(error)

    def _run_all(self, alias: str) -> None:
        for index, tree in enumerate(self.message.trees):
            if not self.message.atomic:
                # Tried: each by itself, as it will be run.
                try:
                    with transaction.atomic(alias) if alias else nullcontext():
                        found = self._result_of(tree, index, alias)
                    self._take(found)
                except Exception as error:
                    self._fail(tree, error)
            else:
                self._take(self._result_of(tree, index, alias))

    def _result_of(self, tree: Tree, index: int, alias: str) -> Any:
        stored = alias and _writes(tree)
        return self._stored(tree, index, alias) if stored else self._result(tree, index, alias)

    def _fail_together(self, error: Exception) -> None:
        trees = self.message.trees
        at = min(len(self.outcomes), len(trees) - 1)
        why = NotRun(f"tree {at} failed, so nothing was done", {"tree": at})
        self.outcomes = [Outcome(error=why) for _ in trees]
        self.outcomes[at] = Outcome(error=self._failure(trees[at], error))

    # One tree

    def _alias(self, tree: Tree) -> str | None:
        """Return the database of the tree; None: it needs none. Raise a RemoteError."""
        if self._given_alias is not None:
            return self._given_alias
        if tree.end.name == "describe":
            return None
        model = exposure_of(tree.model).model
        if _writes(tree) or self.message.atomic or self.message.dry:
            return str(router.db_for_write(model))
        return str(router.db_for_read(model))

    @contextmanager
    def _transaction(self, alias: str) -> Iterator[None]:
        """A transaction whose statements may take as long as the limits and the deadline say."""
        left = self._seconds_left()
        within = [f"{max(1, int(left * 1000))}"]
        is_outermost = not connections[alias].in_atomic_block
        with transaction.atomic(alias):
            with own_cursor(alias) as cursor:
                if takes_several(cursor):
                    # One message with the BEGIN and the next statement.
                    first = [] if self._nonce is None else self._nonce.statements
                    due = cursor.execute_with_next(*first, (_TIMEOUT, within))
                else:
                    due = None
                    if self._nonce is None:
                        cursor.execute(_TIMEOUT, within)
                    else:
                        self._nonce.check_before(cursor, _TIMEOUT, within)
                        self._nonce = None
            if due is None:
                yield
            else:
                with self._due(due, is_outermost):
                    yield

    def _send(self, due: Any) -> None:
        """Note the nonce where no statement of the block has done so."""
        if self._nonce is not None:
            due.send()

    @contextmanager
    def _due(self, due: Any, is_outermost: bool) -> Iterator[None]:
        """Have *due* sent with the first statement in the block, or before the project's code."""
        self.session.before_code = due.send
        self.session.commit_next = due.commit_next if is_outermost else None
        try:
            try:
                yield
            except (DatabaseError, InterfaceError, Apart):
                raise
            except Exception:
                self._send(due)
                raise
            else:
                self._send(due)
        except IntegrityError as error:
            if self._nonce is not None and not due.is_sent:
                raise Replayed("the message was already taken") from error
            raise
        finally:
            self.session.before_code = self.session.commit_next = None
            if due.is_sent:
                self._nonce = None
            due.drop()

    def _seconds_left(self) -> float:
        """Return how long a statement may take; raise DeadlinePassed where no time is left."""
        left = self.message.deadline / 1000 - time.time()
        if left <= 0:
            raise DeadlinePassed("the deadline passed before this was run")
        return min(left, self.service.limits.statement_timeout)

    def _stored(self, tree: Tree, index: int, alias: str) -> Any:
        """Return the result of a write: of this run, or the stored one of the first."""
        if self.message.idempotency is None:
            raise BadValue("a write carries an idempotency key")
        stored = Stored(self.message, index, tree, alias)
        known = stored.claim()
        if known is not None:
            return known[0]
        found = self._result(tree, index, alias)
        # What cannot be sent must not be committed.
        stored.store(encode(found, sendable))
        return found

    def _result(self, tree: Tree, index: int, alias: str) -> Any:
        self._seconds_left()
        name = tree.end.name
        if name == "describe":
            return describe(self.session, tree)
        if name == "call":
            return call(self.session, tree, alias)
        if name in WRITES:
            return write(self.session, tree, alias)
        scope = open_scope(self.session, tree, alias)
        scope.is_last = self._is_last
        return read(scope, tree.end)


def _writes(tree: Tree) -> bool:
    """Return whether *tree* may change rows."""
    if tree.end.name == "call":
        exposure = exposure_of(tree.model)
        return not exposure.methods.get(method_of(tree), False)
    return tree.end.name in WRITES
