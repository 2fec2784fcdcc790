"""Conditions of the claims: the project's `ListenerFilterProvider`, and what is heard here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .channels import BaseChannel, TriggerChannel
from .filters import listener_filter
from .schema import TABLE


@dataclass(frozen=True, slots=True)
class Condition:
    """A further condition on the rows to claim: SQL that begins with AND, and its parameters.

    *escaped* says that their payloads may be no text, in a database without an encoding. *names*
    keeps what tables of the alias are called by their numbers, from one claim to the next.
    """

    sql: str = ""
    params: tuple[Any, ...] = ()
    escaped: bool = False
    names: dict[int, str] = field(default_factory=dict)

    def together(self, other: Condition) -> Condition:
        """Return the condition that both hold."""
        params = (*self.params, *other.params)
        sql = f"{self.sql} {other.sql}".strip()
        return Condition(sql, params, self.escaped, self.names)


def condition_of(alias: str) -> Condition:
    """Return the condition of the project's filter; an empty one where there is none."""
    from .models import Notification

    found = listener_filter()
    if found is None:
        return Condition()
    query: Any = Notification.objects.filter(found).order_by().values("pk").query
    sql, params = query.get_compiler(using=alias).as_sql()
    return Condition(f"AND {TABLE}.id IN ({sql})", tuple(params))


# The operation of a row of django-pgpubsub's triggers, which do not say it.
_OPERATION = """COALESCE(payload ->> 'operation',
    CASE WHEN jsonb_typeof(payload -> 'new') = 'null' THEN 'DELETE'
        WHEN jsonb_typeof(payload -> 'old') = 'null' THEN 'INSERT' ELSE 'UPDATE' END)"""

_HEARD = f"""AND COALESCE(CASE
    WHEN payload ? 'when' THEN (payload ->> 'when') || ' ' || (payload ->> 'operation') = ANY(%s)
    WHEN payload ? 'old' AND payload ? 'new' THEN {_OPERATION} = ANY(%s)
END, true)"""


def heard_here(channel: type[BaseChannel]) -> Condition:
    """Return the condition for rows of operations that listeners of this process hear.

    While two versions of the code run, the others are for the processes of the other version. What
    is not known to be of an operation is claimed: somebody has to be told.
    """
    heard: set[str] = set()
    if not issubclass(channel, TriggerChannel):
        return Condition()
    for listener in channel.registered_listeners():
        if listener.operations is None:
            return Condition()
        heard |= listener.operations
    operations = sorted({each.split()[1] for each in heard})
    return Condition(_HEARD, (sorted(heard), operations))
