"""The admin of stored notifications: their states and errors, retry, discard, run now."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from django.contrib import admin, messages
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.translation import ngettext

from .channels import by_stored_name, registered
from .models import Notification, State
from .sending import process_stored_notifications


@admin.register(Notification)
class NotificationAdmin(admin.ModelAdmin):
    """Shows rows; what is to become of them is changed by actions, not by a form."""

    list_display = ("id", "channel_name", "state", "attempts", "created_at", "run_after", "error")
    list_filter: ClassVar[Any] = ("state", "channel")
    search_fields: ClassVar[Any] = ("=id", "channel", "last_error", "payload")
    date_hierarchy = "created_at"
    ordering = ("-id",)
    actions: ClassVar[Any] = ("retry", "run_now", "discard")
    # The number of all rows is a scan of the table.
    show_full_result_count = False

    @admin.display(description="channel", ordering="channel")
    def channel_name(self, row: Notification) -> str:
        """Return the class of the channel, where this process knows it."""
        channel = by_stored_name(row.channel)
        return row.channel if channel is None else channel.name()

    @admin.display(description="last error")
    def error(self, row: Notification) -> str:
        """Return the last line of the last error."""
        lines = (row.last_error or "").strip().splitlines()
        return lines[-1][:200] if lines else ""

    @admin.display(description="payload")
    def readable_payload(self, row: Notification) -> str:
        """Return the payload, one value a line."""
        text = json.dumps(row.payload, indent=2, default=str, ensure_ascii=False)
        return format_html("<pre>{}</pre>", text)

    @admin.display(description="last error")
    def traceback(self, row: Notification) -> str:
        """Return the whole of the last error."""
        return format_html("<pre>{}</pre>", row.last_error or "")

    def get_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        """Return all columns, the long ones in a readable form."""
        shown = {"payload": "readable_payload", "last_error": "traceback"}
        names = [field.name for field in self.opts.concrete_fields]
        return [shown.get(name, name) for name in names]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        """Return all columns: a worker may have the row."""
        return self.get_fields(request, obj)

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Return False: notifications are sent by `notify`."""
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return False: the action "discard" spares what a worker has at the moment."""
        return False

    @admin.action(description="Retry: ready again, with all attempts", permissions=["change"])
    def retry(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        """Make dead and delayed rows ready, their attempts counted anew."""
        rows = queryset.filter(state__in=[State.DEAD, State.DELAYED])
        self._make_ready(request, rows, attempts=0)

    @admin.action(description="Run now: do not wait for the next attempt", permissions=["change"])
    def run_now(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        """Make delayed rows ready, and wake the listeners of all rows that are."""
        self._make_ready(request, queryset.filter(state=State.DELAYED))

    @admin.action(description="Discard: forget what no worker has", permissions=["change"])
    def discard(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        """Delete rows that no worker has: neither leased, nor locked by a transaction."""
        free = queryset.exclude(state=State.LEASED).select_for_update(skip_locked=True)
        # The alias of writes: what the page shows may be read from a replica.
        using = free.db
        with transaction.atomic(using=using):
            rows = list(free.only("pk", "channel"))
            found = Notification.objects.using(using).filter(pk__in=[row.pk for row in rows])
            if rows:
                self.log_deletions(request, rows)
            count, _ = found.delete()
        left = queryset.using(using).count()
        self._say(request, count, "was discarded", "were discarded", left)

    def _make_ready(self, request: HttpRequest, rows: QuerySet[Any], **changes: Any) -> None:
        free = rows.select_for_update(skip_locked=True)
        using = free.db
        with transaction.atomic(using=using):
            found = list(free)
            count = (
                Notification.objects.using(using)
                .filter(pk__in=[row.pk for row in found])
                .update(state=State.READY, run_after=None, **changes)
            )
            channels = {by_stored_name(row.channel) for row in found}
            listening = [each for each in registered() if each in channels]
            if listening:
                process_stored_notifications(listening, using=using)
        self._say(request, count, "is ready", "are ready", 0)

    def _say(self, request: HttpRequest, count: int, one: str, many: str, left: int) -> None:
        text = ngettext("%d notification ", "%d notifications ", count) % count
        text += one if count == 1 else many
        if left:
            text += f"; {left} are left: a worker has them"
        self.message_user(request, text + ".", messages.WARNING if left else messages.SUCCESS)
