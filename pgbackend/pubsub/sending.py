"""Send notifications: `notify` and its kin.

All values are bound. A notification is sent when the transaction commits, and not at all if it is
rolled back. Outside of a transaction it is sent at once.

See `wire` for the text of a NOTIFY.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from django.db import connections, router, transaction

from .. import bridged
from ..extending import KeptStatement, execute_kept, own_cursor
from .carried import BY_ROW, carried
from .channels import BaseChannel, Channel, locate_channel, select
from .due import NOW, Due, RunAfter, due
from .encoding import check_json
from .errors import PayloadError
from .forms import form_of
from .payload import encode
from .settings import MAX_PLAIN
from .tracing import outgoing
from .waiting import find, unique_key
from .wire import WAKE
from .wire import Wire as Wire
from .wire import parse as parse

# pg_notify() returns void, which is not null.
STORE = """
INSERT INTO pgpubsub_notification
    (channel, payload, state, priority, run_after, order_key, headers, unique_key)
VALUES (%s, %s::jsonb, %s, %s, {due}, %s, %s::jsonb, %s) RETURNING id, {wake}
"""
WAKE_ONE = "pg_notify(%s, %s || id)"

# What is sent at once, and wakes a worker.
_STORE_NOW = KeptStatement(
    STORE.format(wake=WAKE_ONE, due=NOW.sql),
    "text, text, text, smallint, timestamptz, text, text, text, text, text",
)

STORE_MANY = """
INSERT INTO pgpubsub_notification
    (channel, payload, state, priority, run_after, order_key, headers)
SELECT channel, payload::jsonb, %s, %s, {due}, order_key, %s::jsonb
FROM unnest(%s::text[], %s::text[], %s::text[]) AS sent (channel, payload, order_key)
"""
NOTIFY_MANY = "SELECT count(pg_notify(channel, payload)) FROM unnest(%s::text[], %s::text[]) \
AS sent (channel, payload)"

# What the column of the priority takes.
MOST_PRIORITY = 2**15 - 1


def notify(channel: type[Channel] | str, /, **kwargs: Any) -> str:
    """Send a notification with the fields *kwargs* to *channel* and return its payload.

    *channel* is the class or its dotted path. Raise ChannelNotFound for an unknown one and
    PayloadError for values that do not fit, before anything is sent.
    """
    return _send(build(channel, kwargs))[0]


def send(
    notification: Channel,
    *,
    using: str | None = None,
    priority: int = 0,
    run_after: RunAfter = None,
) -> int | None:
    """Send *notification*, an instance of a channel, and return the id of its row if it has one.

    *priority* and *run_after* are for stored channels: higher is earlier, and not before that time,
    or for that long, by the server's clock. Of a channel with `unique_by` the row may be one that
    waits already, and stays as it is. *using* is the alias of the database. Raise PayloadError for
    values that do not fit.
    """
    return _send(notification, using=using, priority=priority, run_after=run_after)[1]


def notify_many(
    notifications: Iterable[Channel],
    *,
    using: str | None = None,
    priority: int = 0,
    run_after: RunAfter = None,
) -> int:
    """Send *notifications*, instances of one or several channels, and return their number.

    Those of stored channels are inserted by one statement and sent as one NOTIFY for each channel;
    those of channels with `unique_by` one by one.
    Nothing is sent if one of them does not fit.
    """
    by_alias: dict[str, list[tuple[Channel, str]]] = {}
    when = due("notify_many()", run_after)
    for each in notifications:
        payload = _payload(each, priority, run_after)
        by_alias.setdefault(using or database(type(each)), []).append((each, payload))
    for alias, sent in by_alias.items():
        for each, payload in sent:
            if each.lock_notifications or _goes_by_row(payload, alias):
                check_json(alias, type(each).name(), payload)
    for alias, sent in by_alias.items():
        _send_many(alias, sent, priority, when)
    return sum(len(sent) for sent in by_alias.values())


anotify = bridged(notify)
asend = bridged(send)
anotify_many = bridged(notify_many)


def process_stored_notifications(
    channels: Iterable[type[BaseChannel] | str] | None = None, using: str | None = None
) -> None:
    """Have whoever listens to *channels*, by default all, handle the notifications in the table."""
    for channel in select(channels):
        if channel.lock_notifications:
            with connections[using or database(channel)].cursor() as cursor:
                cursor.execute("SELECT pg_notify(%s, %s)", [channel.listen_name(), WAKE])


def build(channel: type[Channel] | str, kwargs: dict[str, Any]) -> Any:
    """Return the notification of *channel* with the fields *kwargs*. Raise PayloadError."""
    located = locate_channel(channel)
    try:
        made = located(**kwargs)
    except TypeError as error:
        # A class that is no dataclass is told as such.
        names = ", ".join(form_of(located).fields) or "none"
        raise PayloadError(
            f"{located.name()} does not take these fields: {error}. Its fields: {names}"
        ) from error
    return made


def database(channel: type[BaseChannel]) -> str:
    """Return the alias of the database that *channel* is sent through."""
    from .models import Notification

    return channel.using or router.db_for_write(Notification)


def _payload(notification: Channel, priority: int, run_after: RunAfter) -> str:
    if not isinstance(notification, BaseChannel):
        raise PayloadError(f"{notification!r} is no instance of a channel")
    if not notification.lock_notifications and (priority or run_after is not None):
        raise PayloadError(
            f"{type(notification).name()} is not stored, so it has no priority and no run_after:"
            " set lock_notifications = True"
        )
    if not -MOST_PRIORITY <= priority <= MOST_PRIORITY:
        raise PayloadError(
            f"{type(notification).name()}: priority is {priority!r}; the most is {MOST_PRIORITY}"
        )
    return encode(notification)


def _send(
    notification: Channel,
    *,
    using: str | None = None,
    priority: int = 0,
    run_after: RunAfter = None,
) -> tuple[str, int | None]:
    payload = _payload(notification, priority, run_after)
    channel = type(notification)
    when = due(channel.name(), run_after)
    name = channel.listen_name()
    alias = using or database(channel)
    by_row = not channel.lock_notifications and _goes_by_row(payload, alias)
    if by_row or channel.lock_notifications:
        check_json(alias, channel.name(), payload)
    if channel.lock_notifications and channel.unique_by is not None:
        return payload, _send_once(alias, notification, payload, priority, when)
    with own_cursor(alias) as cursor:
        if channel.lock_notifications:
            parameters = _row(notification, payload, priority, when)
            _store(cursor, parameters, WAKE if channel.wake == "notify" else None, when)
        elif by_row:
            _store(cursor, [name, payload, "plain", 0, None, None, None, None], "@")
        else:
            cursor.execute("SELECT pg_notify(%s, %s)", [name, payload])
            return payload, None
        return payload, cursor.fetchone()[0]


def _row(notification: Channel, payload: str, priority: int, when: Due) -> list[Any]:
    """Return the parameters of `STORE`, all but the key of `unique_by` as the last one."""
    name, key = type(notification).listen_name(), _order_key(notification)
    return [name, payload, when.state, priority, when.value, key, outgoing(), None]


def _send_once(alias: str, notification: Channel, payload: str, priority: int, when: Due) -> int:
    """Store a notification of a channel with `unique_by`, or find the one that waits already."""
    channel = type(notification)
    name = channel.listen_name()
    sign = WAKE if channel.wake == "notify" else None
    key = unique_key(notification, payload)
    with transaction.atomic(using=alias, savepoint=False), own_cursor(alias) as cursor:
        found = None if key is None else find(cursor, alias, name, key)
        if found is None:
            parameters = _row(notification, payload, priority, when)
            _store(cursor, [*parameters[:-1], key], sign, when)
            found = cursor.fetchone()[0]
        elif sign is not None:
            # A worker may have passed the row over while this transaction had locked it.
            cursor.execute("SELECT pg_notify(%s, %s)", [name, f"{sign}{found}"])
        return int(found)


def _goes_by_row(payload: str, alias: str) -> bool:
    return len(payload) > MAX_PLAIN or carried(alias, BY_ROW) == "on"


def _store(cursor: Any, parameters: list[Any], sign: str | None, when: Due = NOW) -> None:
    if sign is None:
        cursor.execute(STORE.format(wake="NULL", due=when.sql), parameters)
        return
    parameters = [*parameters, parameters[0], sign]
    if when is NOW:
        execute_kept(cursor, _STORE_NOW, parameters)
    else:
        cursor.execute(STORE.format(wake=WAKE_ONE, due=when.sql), parameters)


def _send_many(alias: str, sent: Sequence[tuple[Channel, str]], priority: int, when: Due) -> None:
    stored: list[tuple[Channel, str]] = []
    once: list[tuple[Channel, str]] = []
    for each, payload in sent:
        if each.lock_notifications:
            (stored if each.unique_by is None else once).append((each, payload))
    wake = [type(each).listen_name() for each, _ in stored if each.wake == "notify"]
    # One NOTIFY for each stored channel, then the plain ones in their order.
    notified = [(name, WAKE) for name in dict.fromkeys(wake)]
    # In one order, or two senders would wait for each other.
    once.sort(key=lambda pair: (type(pair[0]).listen_name(), unique_key(*pair) or ""))
    with transaction.atomic(using=alias, savepoint=False), own_cursor(alias) as cursor:
        for each, payload in once:
            _send_once(alias, each, payload, priority, when)
        if stored:
            chosen = [when.state, priority, when.value, outgoing()]
            names = [type(each).listen_name() for each, _ in stored]
            keys = [_order_key(each) for each, _ in stored]
            payloads = [payload for _, payload in stored]
            cursor.execute(STORE_MANY.format(due=when.sql), [*chosen, names, payloads, keys])
        for each, payload in sent:
            if each.lock_notifications:
                continue
            name = type(each).listen_name()
            if _goes_by_row(payload, alias):
                _store(cursor, [name, payload, "plain", 0, None, None, None, None], "@")
            else:
                notified.append((name, payload))
        if notified:
            cursor.execute(NOTIFY_MANY, [list(column) for column in zip(*notified, strict=True)])


def _order_key(notification: Channel) -> str | None:
    if notification.ordered_by is None:
        return None
    value = getattr(notification, notification.ordered_by)
    return None if value is None else str(value)
