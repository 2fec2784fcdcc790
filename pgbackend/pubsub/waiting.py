"""What waits in the table: found by its key, for channels with `unique_by`, and taken back.

A notification that is being handled does not wait any longer: what is sent then is stored, since
the listener may have looked before. So no row that a worker has locked counts, and one that counts
is locked, so that no worker has it before the sender's transaction ends and can be seen.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from django.db import connections, router

from .. import bridged
from .channels import Channel
from .claiming import TABLE

# The longest key that is kept as it is, characters; of longer ones it is a digest.
LONGEST_KEY = 200

_FIND = f"""
SELECT id FROM {TABLE}
WHERE channel = %s AND unique_key = %s AND state IN ('ready', 'delayed') AND id <> ALL(%s)
ORDER BY id LIMIT 1 FOR KEY SHARE SKIP LOCKED
"""

# Whoever stores a row under a key keeps others from it until its transaction ends.
_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended(%s, 1))"

_DISCARD = f"""
DELETE FROM {TABLE} WHERE id = (
    SELECT id FROM {TABLE} WHERE id = %s AND state IN ('ready', 'delayed') AND id <> ALL(%s)
    FOR UPDATE SKIP LOCKED
)
"""


# The ids of the rows that the listener that runs was claimed with, each with their alias. Their
# locks are those of its own transaction, so they do not tell it that the rows wait no longer.
_handled: ContextVar[tuple[tuple[str, Sequence[int]], ...]] = ContextVar("handled", default=())


@contextmanager
def handling(alias: str, ids: Sequence[int]) -> Iterator[None]:
    """Let the rows with these *ids* wait no longer, for what is done while the block runs."""
    token = _handled.set((*_handled.get(), (alias, ids)))
    try:
        yield
    finally:
        _handled.reset(token)


def _handled_here(alias: str) -> list[int]:
    return [each for name, ids in _handled.get() if name == alias for each in ids]


def unique_key(notification: Channel, payload: str) -> str | None:
    """Return the values of the fields that `unique_by` names; None: there is nothing to compare."""
    names = type(notification).unique_by
    if names is None:
        return None
    kwargs = json.loads(payload)["kwargs"]
    values = [kwargs[name] for name in ((names,) if isinstance(names, str) else names)]
    if all(value is None for value in values):
        return None
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return text if len(text) <= LONGEST_KEY else hashlib.sha256(text.encode()).hexdigest()


def find(cursor: Any, alias: str, name: str, key: str) -> int | None:
    """Return the id of a row of the channel *name* that waits under *key*.

    No worker takes it until the transaction, which has to be open, ends. None: there is none, and
    nobody else stores one until then.
    """
    parameters = [name, key, _handled_here(alias)]
    found = _find(cursor, parameters)
    if found is None:
        cursor.execute(_LOCK, [f"{name} {key}"])
        # Whoever had the lock before may have stored one.
        found = _find(cursor, parameters)
    return found


def _find(cursor: Any, parameters: Sequence[Any]) -> int | None:
    cursor.execute(_FIND, parameters)
    row = cursor.fetchone()
    return None if row is None else row[0]


def discard(row_id: int, using: str | None = None) -> bool:
    """Take a stored notification back, by the id that `send` returned, if it still waits.

    Return False if a worker has it, or another transaction that is open has sent the same values,
    or it was handled, is dead or is not there.
    """
    from .models import Notification

    alias = using or router.db_for_write(Notification)
    with connections[alias].cursor() as cursor:
        cursor.execute(_DISCARD, [row_id, _handled_here(alias)])
        return bool(cursor.rowcount)


adiscard = bridged(discard)
