"""Whether the triggers of channels are in the database."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from typing import Any

import pgtrigger
import psycopg
from django.db import connections, router

from .channels import BaseChannel, TriggerChannel
from .connecting import arguments_of
from .names import old_name
from .sending import database
from .triggers import Notify

logger = logging.getLogger("pgbackend.pubsub")

NO_TABLE = "The table pgpubsub_notification is not in the database {!r}: nothing can be stored."


def triggers_amiss(
    using: str, channels: Iterable[type[BaseChannel]] | None = None, connection: Any = None
) -> list[tuple[type[BaseChannel], str]]:
    """Return the channels whose triggers are not on the alias *using* as they should be, and why.

    *channels* are those to look at; None: all. *connection*, of psycopg or of Django, is used for
    it; None: the one of Django for the alias.
    """
    wanted = None if channels is None else set(channels)
    expected: dict[str, tuple[Any, Notify, type[BaseChannel]]] = {}
    for model, trigger in pgtrigger.registered():
        of = trigger.channel if isinstance(trigger, Notify) else None
        if of is None or (wanted is not None and of not in wanted):
            continue
        if router.allow_migrate_model(using, model._meta.concrete_model):
            expected[trigger.get_pgid(model)] = (model, trigger, of)
    if not expected:
        return []
    names = [*expected, *(_old_pgid(model, channel) for model, _, channel in expected.values())]
    with (connection or connections[using]).cursor() as asked:
        asked.execute(
            "SELECT tgname, obj_description(oid), tgenabled <> 'D' FROM pg_trigger"
            " WHERE tgname = ANY(%s)",
            [names],
        )
        there = {name: (comment, enabled) for name, comment, enabled in asked.fetchall()}
    found: list[tuple[type[BaseChannel], str]] = []
    for pgid, (model, trigger, channel) in expected.items():
        label = f"The trigger of {channel.name()} for {trigger.operation} of {model._meta.label}"
        if pgid not in there:
            if _old_pgid(model, channel) in there:
                found.append((channel, f"{label} is still that of django-pgpubsub."))
            else:
                found.append((channel, f"{label} is not in the database: nothing is sent."))
        elif there[pgid][0] != trigger.compile(model).hash:
            found.append((channel, f"{label} is not as the code has it."))
        elif not there[pgid][1]:
            found.append((channel, f"{label} is disabled."))
    return found


def has_table(using: str, connection: Any = None) -> bool:
    """Return whether the table of notifications is on the alias *using*, or belongs elsewhere.

    *connection* is as in `triggers_amiss`.
    """
    from .models import Notification

    if not router.allow_migrate_model(using, Notification):
        return True
    with (connection or connections[using]).cursor() as asked:
        asked.execute("SELECT to_regclass(%s) IS NOT NULL", [Notification._meta.db_table])
        return bool(asked.fetchone()[0])


def warn_of_triggers(channels: Iterable[type[BaseChannel]]) -> None:
    """Log what is missing for *channels* in the database; nothing where the server is not there."""
    by_alias: dict[str, list[type[BaseChannel]]] = {}
    for channel in channels:
        found = by_alias.setdefault(database(channel), [])
        if issubclass(channel, TriggerChannel):
            found.append(channel)
    for alias, found in by_alias.items():
        try:
            # A connection of its own: whoever listens needs none of Django's.
            with psycopg.connect(**arguments_of(alias)) as conn:
                if not has_table(alias, conn):
                    logger.warning("%s Run migrate.", NO_TABLE.format(alias))
                    continue
                amiss = triggers_amiss(alias, found, conn)
        except psycopg.Error:
            # Whoever listens goes on asking, and says so in the server's words.
            continue
        for _, message in amiss:
            logger.warning("%s Run makemigrations and migrate.", message)


def _old_pgid(model: Any, channel: type[BaseChannel]) -> str:
    """Return the name in the database of the trigger that django-pgpubsub made."""
    name = old_name(channel.name())
    label = f"{model._meta.app_label}.{model._meta.object_name}"
    digest = hashlib.sha1(f"{label}:{name}".encode(), usedforsecurity=False).hexdigest()[:5]
    return f"pgtrigger_{name}_{digest}"
