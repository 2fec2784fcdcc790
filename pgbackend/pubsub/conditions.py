"""The project's `ListenerFilterProvider` as a condition of the claims."""

from __future__ import annotations

from typing import Any

from .claiming import TABLE, Condition
from .filters import listener_filter


def condition_of(alias: str) -> Condition:
    """Return the condition of the project's filter; an empty one where there is none."""
    from .models import Notification

    found = listener_filter()
    if found is None:
        return Condition()
    query: Any = Notification.objects.filter(found).order_by().values("pk").query
    sql, params = query.get_compiler(using=alias).as_sql()
    return Condition(f"AND {TABLE}.id IN ({sql})", tuple(params))
