"""System checks: what would go wrong with a channel, before anything is sent."""

from __future__ import annotations

import difflib
import inspect
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from django.apps import apps
from django.conf import settings as project
from django.core import checks
from django.core.exceptions import FieldDoesNotExist, ImproperlyConfigured
from django.db import DatabaseError, connections

from ..bridge import is_bridged
from . import filters, settings
from .channels import BaseChannel, Channel, TriggerChannel, registered
from .errors import PayloadError
from .forms import form_of
from .installed import NO_TABLE
from .names import old_name
from .periodic import PeriodicChannel, wrong_schedule
from .registry import Listener

# `manage.py check --tag pubsub` runs these alone, and so does `listen`.
TAG = "pubsub"


def register() -> None:
    """Register the checks."""
    checks.register(check, TAG)
    checks.register(check_triggers, TAG, checks.Tags.database)


def check(**kwargs: Any) -> list[checks.CheckMessage]:
    """Check the settings and, if they can be read, the channels."""
    found = check_settings()
    if any(each.id == "pgpubsub.E005" for each in found):
        return found
    found += check_channels()
    if any(each.id == "pgpubsub.E002" for each in found):
        # What is no dataclass has neither a name that can be relied on nor fields.
        return found
    return [*found, *check_names(), *check_listeners(), *check_bodies()]


def check_names() -> list[checks.CheckMessage]:
    """E001, W001: channels of the same name, on the wire or as django-pgpubsub named them."""
    new, old = defaultdict(list), defaultdict(list)
    for channel in registered():
        new[channel.listen_name()].append(channel)
        old[old_name(channel.name())].append(channel)
    found: list[checks.CheckMessage] = []
    for name, channels in new.items():
        if len(channels) > 1:
            found.append(
                checks.Error(
                    f"{_listed(channels)} have the same name {name!r}: each would get what is sent"
                    " to the other.",
                    hint="Rename one of the classes, or move it to another module.",
                    obj=channels[0],
                    id="pgpubsub.E001",
                )
            )
    if settings.old_names():
        for name, channels in old.items():
            if len({each.listen_name() for each in channels}) > 1:
                found.append(
                    checks.Warning(
                        f"{_listed(channels)} have the same name {name!r} in django-pgpubsub. What"
                        " its triggers send under it is heard by the first one alone.",
                        hint="Run makemigrations and migrate, which make new triggers, and then set"
                        " PGPUBSUB_OLD_NAMES = False.",
                        obj=channels[0],
                        id="pgpubsub.W001",
                    )
                )
    return found


def check_channels() -> list[checks.CheckMessage]:
    """E002, E003: fields without a form in JSON, and options that are wrong."""
    found: list[checks.CheckMessage] = []
    for channel in registered():
        if issubclass(channel, Channel):
            try:
                form_of(channel)
            except PayloadError as error:
                found.append(checks.Error(f"{error}.", obj=channel, id="pgpubsub.E002"))
                continue
        found += [
            checks.Error(f"{channel.name()}: {wrong}", obj=channel, id="pgpubsub.E003")
            for wrong in _wrong_options(channel)
        ]
    return found


def check_listeners() -> list[checks.CheckMessage]:
    """E004: listeners that cannot be called with the fields of their channel."""
    found: list[checks.CheckMessage] = []
    for channel in registered():
        for listener in channel.registered_listeners():
            wrong = _wrong_signature(listener)
            if wrong:
                found.append(
                    checks.Error(
                        f"{listener.name} cannot be called with the fields of {channel.name()}:"
                        f" {wrong}.",
                        hint="A listener has a parameter for each field, or **kwargs. It is called"
                        f" with {', '.join(f'{name}=' for name in sorted(_arguments(channel)))}.",
                        obj=channel,
                        id="pgpubsub.E004",
                    )
                )
    return found


def check_bodies() -> list[checks.CheckMessage]:
    """W004: what stands in the body of a channel and is nearly an option."""
    found: list[checks.CheckMessage] = []
    for channel in registered():
        known = {field.name for field in fields(channel)}
        for cls in channel.__mro__[: channel.__mro__.index(BaseChannel)]:
            for name, value in vars(cls).items():
                if name.startswith("_") or name in known or hasattr(value, "__get__"):
                    continue
                near = difflib.get_close_matches(name, _ALL_OPTIONS, 1, 0.8)
                if near and name not in _ALL_OPTIONS:
                    found.append(
                        checks.Warning(
                            f"{channel.name()}: nothing reads {name}.",
                            hint=f"Did you mean {near[0]}?",
                            obj=channel,
                            id="pgpubsub.W004",
                        )
                    )
    return found


def check_settings() -> list[checks.CheckMessage]:
    """E005, E006, W002: wrong values of settings, unknown ones, and a missing application."""
    found: list[checks.CheckMessage] = []
    for read in (*settings.SETTINGS.values(), filters.listener_filter):
        try:
            read()
        except ImproperlyConfigured as error:
            found.append(checks.Error(f"{error}.", id="pgpubsub.E005"))
    for name in dir(project):
        if name.startswith("PGPUBSUB_") and name not in settings.SETTINGS:
            near = difflib.get_close_matches(name, settings.SETTINGS, 1)
            found.append(
                checks.Warning(
                    f"Nothing reads the setting {name}.",
                    hint=f"Did you mean {near[0]}?" if near else None,
                    id="pgpubsub.W002",
                )
            )
    if not apps.is_installed("pgtrigger"):
        found.append(
            checks.Error(
                '"pgtrigger" is not in INSTALLED_APPS, so migrations would not make the triggers'
                " of channels.",
                hint='INSTALLED_APPS = [..., "pgtrigger", "pgbackend.pubsub"]',
                id="pgpubsub.E006",
            )
        )
    return found


def check_triggers(databases: Any = None, **kwargs: Any) -> list[checks.CheckMessage]:
    """W003, W005: triggers that are not in the database, or not as in the code, and no table."""
    found: list[checks.CheckMessage] = []
    for alias in databases or ():
        if connections[alias].vendor != "postgresql":
            continue
        try:
            amiss, has_table = _amiss(alias)
        except (DatabaseError, ImproperlyConfigured):
            # `migrate` and others say it in the server's words, and other checks in theirs.
            continue
        if not has_table:
            found.append(
                checks.Warning(
                    NO_TABLE.format(alias), hint="`migrate` makes it.", obj=None, id="pgpubsub.W005"
                )
            )
            continue
        found += [
            checks.Warning(
                each, hint="Run makemigrations and migrate.", obj=channel, id="pgpubsub.W003"
            )
            for channel, each in amiss
        ]
    return found


def _amiss(alias: str) -> tuple[list[tuple[type[BaseChannel], str]], bool]:
    """Return what `triggers_amiss` finds, and whether the table is there or is not to be.

    Leave no connection and no pool open.
    """
    from .installed import has_table, triggers_amiss

    wrapper: Any = connections[alias]
    if is_bridged() or wrapper.connection is not None:
        return triggers_amiss(alias), has_table(alias)
    wrapper = wrapper.copy()
    # Django's pool would wait for its time-out where the server is down.
    wrapper.settings_dict["OPTIONS"].pop("pool", None)
    try:
        return triggers_amiss(alias, connection=wrapper), has_table(alias, wrapper)
    finally:
        wrapper.close()


def _wrong_options(channel: type[BaseChannel]) -> Iterator[str]:
    def number(name: str, least: float, whole: bool, optional: bool) -> Iterator[str]:
        value = getattr(channel, name)
        if value is None and optional:
            return
        kinds = int if whole else (int, float)
        most = _MOST_NUMBER if whole else _MOST_SECONDS
        # Not a number is in no range.
        fits = isinstance(value, kinds) and not isinstance(value, bool) and least <= value <= most
        if not fits:
            kind = "a whole number" if whole else "a number of seconds"
            least_of = f"from {least} on" if whole or least == 0 else "above 0"
            kind += f" {least_of}{' or None' if optional else ''}, at most {most:,}"
            yield f"{name} is {kind}, not {value!r}."

    for option in ("lock_notifications", *_OPTIONS):
        if is_dataclass(channel) and option in {field.name for field in fields(channel)}:
            yield f"{option} is an option, not a field: write {option} = ... without annotation."
    if not isinstance(channel.lock_notifications, bool):
        yield f"lock_notifications is True or False, not {channel.lock_notifications!r}."
    yield from number("lease", 1e-9, False, True)
    yield from number("timeout", 1e-9, False, True)
    yield from number("backoff", 0, False, False)
    yield from number("retries", 0, True, False)
    yield from number("concurrency", 1, True, False)
    if channel.wake not in ("notify", "poll"):
        yield f'wake is "notify" or "poll", not {channel.wake!r}.'
    if channel.using is not None and channel.using not in connections:
        yield f"using is an alias of DATABASES or None, not {channel.using!r}."
    if channel.ordered_by is not None:
        yield from _wrong_order(channel)
    if channel.unique_by is not None:
        yield from _wrong_unique(channel)
    if issubclass(channel, PeriodicChannel):
        yield from wrong_schedule(channel)
    if not channel.lock_notifications:
        for option in _STORED:
            if getattr(channel, option) != getattr(BaseChannel, option):
                yield f"{option} is for stored channels: set lock_notifications = True."


def _wrong_order(channel: type[BaseChannel]) -> Iterator[str]:
    if issubclass(channel, TriggerChannel):
        if channel.model is not None:
            try:
                channel.model._meta.get_field(channel.ordered_by)
            except FieldDoesNotExist:
                yield (
                    f"ordered_by is no field of {channel.model._meta.label}:"
                    f" {channel.ordered_by!r}."
                )
    elif channel.ordered_by not in {field.name for field in fields(channel)}:
        yield f"ordered_by is none of the channel's fields: {channel.ordered_by!r}."


def _wrong_unique(channel: type[BaseChannel]) -> Iterator[str]:
    names = channel.unique_by
    if issubclass(channel, TriggerChannel):
        yield "unique_by is for channels that you send to: a table's rows are all sent."
    elif not isinstance(names, str | tuple) or not names:
        yield f"unique_by is a field, a tuple of fields or None, not {names!r}."
    else:
        known = {field.name for field in fields(channel)}
        for name in (names,) if isinstance(names, str) else names:
            if name not in known:
                yield f"unique_by is none of the channel's fields: {name!r}."


def _wrong_signature(listener: Listener) -> str | None:
    channel = listener.channel
    try:
        signature = inspect.signature(listener.callback)
    except (TypeError, ValueError):
        # A function of C says not what it takes.
        return None
    try:
        signature.bind(**dict.fromkeys(_arguments(channel)))
    except TypeError as error:
        return str(error)
    return None


def _arguments(channel: type[BaseChannel]) -> set[str]:
    """Return the names of the keyword arguments of the channel's listeners."""
    names = {field.name for field in fields(channel)}
    if issubclass(channel, TriggerChannel) and not settings.pass_context():
        names.discard("context")
    return names


def _listed(channels: list[type[BaseChannel]]) -> str:
    return " and ".join(f"{each.__module__}.{each.__qualname__}" for each in channels)


# 31 years: more than that is a mistake, and much more is no interval of the server's.
_MOST_SECONDS = 1_000_000_000
# The server's bigint.
_MOST_NUMBER = 2**63 - 1

_OPTIONS = (
    *("using", "lease", "retries", "backoff", "timeout", "concurrency", "ordered_by", "unique_by"),
    "wake",
)
_ALL_OPTIONS = ("lock_notifications", "model", "schedule", *_OPTIONS)
_STORED = ("lease", "retries", "backoff", "ordered_by", "unique_by", "wake")
