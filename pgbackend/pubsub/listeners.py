"""The decorators that register listeners, and for tables their triggers.

Each returns the function itself, which may be asynchronous. The names are those of
django-pgpubsub; a listener of triggers is called for its own operation only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pgtrigger
from django.db.models.base import ModelBase

from .channels import BaseChannel, TriggerChannel, locate_channel
from .errors import PubsubError
from .filters import ListenerFilterProvider as ListenerFilterProvider
from .registry import register
from .triggers import OPERATIONS, TIMES, notify_trigger

F = TypeVar("F", bound=Callable[..., Any])
Given = type[BaseChannel] | str


def listener(channel: Given) -> Callable[[F], F]:
    """Register the function for each notification of *channel*, a class or its dotted path.

    The function is called with the channel's fields as keyword arguments.
    """
    located = locate_channel(channel)

    def decorate(callback: F) -> F:
        return register(located, callback)

    return decorate


def pre_save_listener(channel: Given) -> Callable[[F], F]:
    """Register the function for rows about to be inserted or updated."""
    return _of_operations(channel, "BEFORE", "INSERT", "UPDATE")


def post_save_listener(channel: Given) -> Callable[[F], F]:
    """Register the function for rows that were inserted or updated."""
    return _of_operations(channel, "AFTER", "INSERT", "UPDATE")


def pre_insert_listener(channel: Given) -> Callable[[F], F]:
    """Register the function for rows about to be inserted."""
    return _of_operations(channel, "BEFORE", "INSERT")


def post_insert_listener(channel: Given) -> Callable[[F], F]:
    """Register the function for rows that were inserted."""
    return _of_operations(channel, "AFTER", "INSERT")


def pre_update_listener(channel: Given) -> Callable[[F], F]:
    """Register the function for rows about to be updated."""
    return _of_operations(channel, "BEFORE", "UPDATE")


def post_update_listener(channel: Given) -> Callable[[F], F]:
    """Register the function for rows that were updated."""
    return _of_operations(channel, "AFTER", "UPDATE")


def pre_delete_listener(channel: Given) -> Callable[[F], F]:
    """Register the function for rows about to be deleted."""
    return _of_operations(channel, "BEFORE", "DELETE")


def post_delete_listener(channel: Given) -> Callable[[F], F]:
    """Register the function for rows that were deleted."""
    return _of_operations(channel, "AFTER", "DELETE")


def trigger_listener(channel: Given, trigger: pgtrigger.Trigger) -> Callable[[F], F]:
    """Register the function for what *trigger* sends, and the trigger for the channel's table.

    *trigger* is a `triggers.Notify`, or any other that notifies the channel. The function is called
    for the trigger's own operations.
    """
    located = _of_table(channel)
    operations = frozenset(
        # "UPDATE OF column" is an UPDATE.
        f"{trigger.when} {str(operation).split()[0]}"
        for operation in trigger.operation
    )
    if getattr(trigger, "channel", located) is None:
        trigger.channel = located

    def decorate(callback: F) -> F:
        register(located, callback, operations)
        _register_trigger(located, trigger)
        return callback

    return decorate


def register_triggers(channel: Given, *operations: str) -> None:
    """Register the triggers of *channel* for *operations*, such as ``"AFTER INSERT"``.

    The decorators do so themselves. This is for code that has the models, and makes their
    migrations, while the listeners are elsewhere. Raise PubsubError for what is no operation.
    """
    located = _of_table(channel)
    for each in operations:
        when, _, operation = each.partition(" ")
        if when not in TIMES or operation not in OPERATIONS:
            raise PubsubError(
                f"{each!r} is no operation of a trigger: write BEFORE or AFTER, and INSERT, UPDATE"
                " or DELETE, as in 'AFTER INSERT'"
            )
        _register_trigger(located, notify_trigger(located, when, operation))


def _of_operations(channel: Given, when: str, *operations: str) -> Callable[[F], F]:
    located = _of_table(channel)

    def decorate(callback: F) -> F:
        register(located, callback, frozenset(f"{when} {each}" for each in operations))
        for operation in operations:
            _register_trigger(located, notify_trigger(located, when, operation))
        return callback

    return decorate


def _register_trigger(channel: type[TriggerChannel], trigger: pgtrigger.Trigger) -> None:
    known = {(model, each.name) for model, each in pgtrigger.registered()}
    if (channel.model, trigger.name) not in known:
        pgtrigger.register(trigger)(channel.model)


def _of_table(channel: Given) -> type[TriggerChannel]:
    located = locate_channel(channel)
    if not issubclass(located, TriggerChannel):
        raise PubsubError(
            f"{located.name()} has no table: derive it from TriggerChannel, or use @listener"
        )
    if located.model is None:
        raise PubsubError(f"{located.name()} names no model: set model = ... in its body")
    if not isinstance(located.model, ModelBase):
        raise PubsubError(
            f"{located.name()}: model is the class of a model, not {located.model!r:.100}"
        )
    return located
