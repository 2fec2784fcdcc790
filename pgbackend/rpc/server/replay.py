"""Messages that come twice: nonces that were seen, and the stored answers of writes."""

from __future__ import annotations

import hashlib
import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db.models import Q

from ...extending import own_cursor
from ..protocol.errors import BadValue, Replayed
from ..protocol.messages import Message
from ..protocol.nodes import Tree
from ..protocol.trees import encode_tree
from ..protocol.values import decode
from .models import SeenNonce, StoredAnswer
from .settings import Service

# Seconds between two looks of a process for what has expired.
PRUNE_EVERY = 60.0
# How long the answer of a write is given again.
ANSWERS_KEPT = timedelta(days=1)

_FIRST = "INSERT INTO pgbackend_rpc_server_seennonce (nonce, until) VALUES (%s, %s)"
_NONCE = f"{_FIRST} ON CONFLICT (nonce) DO NOTHING"
# The next transaction is of the same kind: the isolation level of the project's settings stays.
_COMMIT = "COMMIT AND CHAIN"
_CLAIM = """
INSERT INTO pgbackend_rpc_server_storedanswer (scope, tree, answer, created_at)
VALUES (%s, %s, '', %s) ON CONFLICT (scope) DO NOTHING
"""

_next_prune = 0.0


class Nonce:
    """The nonce of *message*, which is noted before anything is run, and stays so whatever fails.

    A message that its broker *redelivered* may have been noted: its worker may have died since.
    """

    def __init__(self, message: Message, service: Service, *, redelivered: bool) -> None:
        self._service = service
        self._redelivered = redelivered
        # Until then its deadline refuses it, wherever within the skew the client's clock is.
        until = message.deadline / 1000 + service.limits.max_skew
        self._row = [f"{message.key_id}:{message.nonce}", datetime.fromtimestamp(until, UTC)]

    @property
    def alias(self) -> str:
        """The database that it is noted in."""
        return self._service.database

    def check(self) -> None:
        """Note it; raise Replayed if it was noted before."""
        with own_cursor(self.alias) as cursor:
            cursor.execute(_NONCE, self._row)
            self._look_at(cursor)

    def check_before(self, cursor: Any, sql: str, params: list[Any]) -> None:
        """Note it as `check` does, in the transaction that *cursor* begins, and commit that.

        The transaction goes on with *sql*.
        """
        cursor.execute(_NONCE, self._row)
        self._look_at(cursor)
        cursor.execute(_COMMIT, None)
        cursor.execute(sql, params)

    @property
    def statements(self) -> list[tuple[str, Any]]:
        """The statements that note it in a transaction and begin another one.

        One that was noted is an IntegrityError, so nothing that follows in the same message is run.
        """
        return [(_NONCE if self._redelivered else _FIRST, self._row), (_COMMIT, None)]

    def _look_at(self, cursor: Any) -> None:
        if cursor.rowcount != 1 and not self._redelivered:
            raise Replayed("the message was already taken")


def prune(service: Service) -> None:
    """Delete what has expired, now and then."""
    global _next_prune
    if time.monotonic() < _next_prune:
        return
    _next_prune = time.monotonic() + PRUNE_EVERY
    now = datetime.now(UTC)
    SeenNonce.objects.using(service.database).filter(Q(("until__lt", now))).delete()
    StoredAnswer.objects.using(service.database).filter(
        Q(("created_at__lt", now - ANSWERS_KEPT))
    ).delete()


class Stored:
    """The answer of one write, stored where the write is committed, on *alias*."""

    def __init__(self, message: Message, index: int, tree: Tree, alias: str) -> None:
        self._alias = alias
        named = [message.key_id, message.principal, message.idempotency, index]
        self._scope = _digest(named)
        self._tree = _digest(encode_tree(tree))

    def claim(self) -> Any:
        """Take the place of the answer; return None, or the answer if it is there as a list of one.

        Where another transaction has the place, wait for its end. Raise BadValue if the key came
        with another tree.
        """
        with own_cursor(self._alias) as cursor:
            cursor.execute(_CLAIM, [self._scope, self._tree, datetime.now(UTC)])
            if cursor.rowcount == 1:
                return None
        found = StoredAnswer.objects.using(self._alias).get(pk=self._scope)
        if found.tree != self._tree:
            raise BadValue("the idempotency key came with another request before")
        return [decode(json.loads(found.answer))]

    def store(self, encoded: Any) -> None:
        """Store the answer, as JSON, in the transaction of the write."""
        StoredAnswer.objects.using(self._alias).filter(pk=self._scope).update(
            answer=json.dumps(encoded)
        )


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
