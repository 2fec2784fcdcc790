"""Channels over LISTEN/NOTIFY: listeners on the event loop, stored notifications, triggers.

Put ``"pgtrigger"`` and ``"pgbackend.pubsub"`` into ``INSTALLED_APPS``. The interface is that of
django-pgpubsub. The names in ``__all__`` are public; each is imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..lazy import on_first_use

if TYPE_CHECKING:
    from .channels import BaseChannel, Channel, TriggerChannel, locate_channel
    from .context import (
        aset_notification_context,
        notification_context,
        set_notification_context,
    )
    from .errors import (
        ChannelNotFound,
        NotificationsMissed,
        PayloadError,
        PubsubError,
        SlowConsumer,
    )
    from .filters import ListenerFilterProvider
    from .listeners import (
        listener,
        post_delete_listener,
        post_insert_listener,
        post_save_listener,
        post_update_listener,
        pre_delete_listener,
        pre_insert_listener,
        pre_save_listener,
        pre_update_listener,
        register_triggers,
        trigger_listener,
    )
    from .models import Notification
    from .periodic import PeriodicChannel
    from .sending import (
        anotify,
        anotify_many,
        asend,
        notify,
        notify_many,
        process_stored_notifications,
        send,
    )
    from .stream import Stream
    from .waiting import adiscard, discard

__all__ = [
    "BaseChannel",
    "Channel",
    "ChannelNotFound",
    "ListenerFilterProvider",
    "Notification",
    "NotificationsMissed",
    "PayloadError",
    "PeriodicChannel",
    "PubsubError",
    "SlowConsumer",
    "Stream",
    "TriggerChannel",
    "adiscard",
    "anotify",
    "anotify_many",
    "asend",
    "aset_notification_context",
    "discard",
    "listener",
    "locate_channel",
    "notification_context",
    "notify",
    "notify_many",
    "post_delete_listener",
    "post_insert_listener",
    "post_save_listener",
    "post_update_listener",
    "pre_delete_listener",
    "pre_insert_listener",
    "pre_save_listener",
    "pre_update_listener",
    "process_stored_notifications",
    "register_triggers",
    "send",
    "set_notification_context",
    "trigger_listener",
]

# The modules that define the public names.
_PLACES = {
    "BaseChannel": "channels",
    "Channel": "channels",
    "ChannelNotFound": "errors",
    "ListenerFilterProvider": "filters",
    "Notification": "models",
    "NotificationsMissed": "errors",
    "PayloadError": "errors",
    "PeriodicChannel": "periodic",
    "PubsubError": "errors",
    "SlowConsumer": "errors",
    "Stream": "stream",
    "TriggerChannel": "channels",
    "adiscard": "waiting",
    "anotify": "sending",
    "anotify_many": "sending",
    "aset_notification_context": "context",
    "asend": "sending",
    "discard": "waiting",
    "listener": "listeners",
    "locate_channel": "channels",
    "notification_context": "context",
    "notify": "sending",
    "notify_many": "sending",
    "post_delete_listener": "listeners",
    "post_insert_listener": "listeners",
    "post_save_listener": "listeners",
    "post_update_listener": "listeners",
    "pre_delete_listener": "listeners",
    "pre_insert_listener": "listeners",
    "pre_save_listener": "listeners",
    "pre_update_listener": "listeners",
    "process_stored_notifications": "sending",
    "register_triggers": "listeners",
    "send": "sending",
    "set_notification_context": "context",
    "trigger_listener": "listeners",
}

# Type checkers see the imports above, and no other names.
if not TYPE_CHECKING:
    __getattr__, __dir__ = on_first_use(globals(), _PLACES)
