"""Time zones by the names that messages have."""

from __future__ import annotations

from datetime import tzinfo

from .errors import BadValue


def zone_name(zone: tzinfo | None) -> str | None:
    """Return the name of *zone* that a message has: "Europe/Moscow", "UTC" or "+03:00"."""
    if zone is None:
        return None
    key = getattr(zone, "key", None)
    if key:
        return str(key)
    offset = zone.utcoffset(None)
    if offset is None:
        raise BadValue(f"{zone!r} has no name that a service knows")
    if not offset:
        return "UTC"
    minutes = int(offset.total_seconds()) // 60
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}:{abs(minutes) % 60:02}"
