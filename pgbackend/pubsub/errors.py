"""Errors of channels and their payloads."""

from __future__ import annotations


class PubsubError(Exception):
    """The base of the errors that pgbackend.pubsub raises itself."""


class ChannelNotFound(PubsubError, LookupError):
    """No channel has the given name, or no listener was registered for the given channels."""


class PayloadError(PubsubError, ValueError):
    """A value does not fit the field of its channel, or a payload does not fit the channel.

    Raised by `notify` before anything is sent, and where a notification is decoded.
    """


class SlowConsumer(PubsubError):
    """A stream was ended because too many notifications waited for its reader."""


class NotificationsMissed(PubsubError):
    """The listening connection was lost for a while: read again what the stream tells of."""
