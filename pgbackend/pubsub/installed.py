"""Whether the triggers of channels are in the database."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import pgtrigger
from django.db import connections, router

from .channels import BaseChannel
from .names import old_name
from .triggers import Notify


def triggers_amiss(
    using: str, channels: Iterable[type[BaseChannel]] | None = None
) -> list[tuple[type[BaseChannel], str]]:
    """Return the channels whose triggers are not on the alias *using* as they should be, and why.

    *channels* are those to look at; None: all.
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
    with connections[using].cursor() as cursor:
        cursor.execute(
            "SELECT tgname, obj_description(oid), tgenabled <> 'D' FROM pg_trigger"
            " WHERE tgname = ANY(%s)",
            [names],
        )
        there = {name: (comment, enabled) for name, comment, enabled in cursor.fetchall()}
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


def _old_pgid(model: Any, channel: type[BaseChannel]) -> str:
    """Return the name in the database of the trigger that django-pgpubsub made."""
    name = old_name(channel.name())
    label = f"{model._meta.app_label}.{model._meta.object_name}"
    digest = hashlib.sha1(f"{label}:{name}".encode(), usedforsecurity=False).hexdigest()[:5]
    return f"pgtrigger_{name}_{digest}"
