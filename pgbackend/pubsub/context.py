"""The context of notifications: what the triggers of this request put into their payloads."""

from __future__ import annotations

from typing import Any

from .. import bridged


def set_notification_context(context: dict[str, Any], using: str | None = None) -> None:
    """Put *context* into the payloads of triggers."""
    raise NotImplementedError


aset_notification_context = bridged(set_notification_context)
