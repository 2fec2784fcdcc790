"""The messages of system checks."""

from __future__ import annotations

from django.core.checks import CheckMessage

from pgbackend.wrapper.settings_checks import check_options


def of(alias: str) -> list[CheckMessage]:
    return [each for each in check_options() if f"[{alias!r}]" in each.msg]


NAN, INF = float("nan"), float("inf")
