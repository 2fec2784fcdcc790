"""The table of stored notifications: that of django-pgpubsub with further columns.

The further columns have defaults in the database, so that triggers made by django-pgpubsub, and
processes that still run it, go on inserting rows.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any, ClassVar

from django.db import models
from django.db.models.functions import Now

from .channels import BaseChannel
from .payload import PayloadDecoder
from .settings import require_installed

# Otherwise Django would take "pgbackend" for the application of these models.
require_installed()


class State(models.TextChoices):
    """What is to become of a row."""

    READY = "ready"  # A listener may claim it.
    DELAYED = "delayed"  # Ready after run_after; a failed one waits here for its next attempt.
    LEASED = "leased"  # A worker has it until lease_until.
    DEAD = "dead"  # No attempt is left; last_error says why. Somebody has to look at it.
    PLAIN = "plain"  # The payload of a plain notification that is too long for NOTIFY.


class Notification(models.Model):
    """A stored notification; it is deleted when its listeners have succeeded."""

    channel = models.CharField(max_length=63)
    payload = models.JSONField(decoder=PayloadDecoder)
    created_at = models.DateTimeField(db_default=Now(), null=True, editable=False)
    # The last migration of the payload's application when the row was written.
    db_version = models.IntegerField(null=True, blank=True)
    state = models.CharField(max_length=7, choices=State.choices, db_default="ready")
    # Higher is earlier, as in django.tasks.
    priority = models.SmallIntegerField(db_default=0)
    attempts = models.IntegerField(db_default=0)
    run_after = models.DateTimeField(null=True, blank=True)
    lease_until = models.DateTimeField(null=True, blank=True)
    worker = models.TextField(null=True, blank=True)
    last_error = models.TextField(null=True, blank=True)
    # The value of the channel's `ordered_by`: rows with the same one are handled one at a time. In
    # place of a long one, the database puts its hash.
    order_key = models.TextField(null=True, blank=True)
    # The values of the channel's `unique_by`: of rows with the same one, one waits.
    unique_key = models.TextField(null=True, blank=True)
    # What tracing needs to link the handler to the sender.
    headers = models.JSONField(null=True, blank=True)

    class Meta:
        ordering: ClassVar[list[str]] = ["id"]
        # A row in another state, or that waits for no time, would be one that nobody looks at.
        constraints: ClassVar[list[models.CheckConstraint]] = [
            models.CheckConstraint(
                condition=models.Q(state__in=["ready", "delayed", "leased", "dead", "plain"]),
                name="pgpubsub_notification_state",
            ),
            models.CheckConstraint(
                condition=(~models.Q(state="delayed") | models.Q(run_after__isnull=False))
                & (~models.Q(state="leased") | models.Q(lease_until__isnull=False)),
                name="pgpubsub_notification_due",
            ),
        ]
        # Partial indexes: what a claim costs does not grow with the rows that nobody may claim.
        indexes: ClassVar[list[models.Index]] = [
            models.Index(
                "channel",
                models.F("priority").desc(),
                "id",
                condition=models.Q(state="ready"),
                name="pgpubsub_notification_ready",
            ),
            models.Index(
                "run_after", condition=models.Q(state="delayed"), name="pgpubsub_notification_later"
            ),
            models.Index(
                "lease_until",
                condition=models.Q(state="leased"),
                name="pgpubsub_notification_lease",
            ),
            models.Index(
                "channel",
                "order_key",
                "id",
                # Not state__in: the server writes that down anew whenever it rebuilds the index.
                condition=models.Q(order_key__isnull=False)
                & (models.Q(state="ready") | models.Q(state="delayed") | models.Q(state="leased")),
                name="pgpubsub_notification_order",
            ),
            models.Index(
                "channel",
                "unique_key",
                condition=models.Q(unique_key__isnull=False)
                & (models.Q(state="ready") | models.Q(state="delayed")),
                name="pgpubsub_notification_unique",
            ),
            models.Index(
                "created_at",
                condition=models.Q(state="plain"),
                name="pgpubsub_notification_plain",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.channel} #{self.pk}"

    def __repr__(self) -> str:
        return (
            f"<Notification #{self.pk} {self.state} channel={self.channel!r}"
            f" attempts={self.attempts} created_at={self.created_at} db_version={self.db_version}>"
        )

    @classmethod
    def from_channel(cls, channel: type[BaseChannel]) -> models.QuerySet[Any]:
        """Return the stored notifications of *channel*, under all of its names."""
        return cls.objects.filter(channel__in=channel.stored_names())


class TaskRecord(models.Model):
    """A task of `pgbackend.pubsub.tasks`, Django 6.0 and later, and its result."""

    id = models.CharField(max_length=32, primary_key=True)
    path = models.TextField()
    backend = models.TextField()
    queue_name = models.TextField()
    priority = models.SmallIntegerField(default=0)
    run_after = models.DateTimeField(null=True, blank=True)
    # A django.tasks.TaskResultStatus.
    status = models.CharField(max_length=10)
    args = models.JSONField(default=list)
    kwargs = models.JSONField(default=dict)
    enqueued_at = models.DateTimeField()
    started_at = models.DateTimeField(null=True, blank=True)
    last_attempted_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)
    return_value = models.JSONField(null=True, blank=True)
    errors = models.JSONField(default=list)
    worker_ids = models.JSONField(default=list)
    # The id of the notification that it waits for.
    notification = models.BigIntegerField(null=True, blank=True)

    class Meta:
        indexes: ClassVar[list[models.Index]] = [
            models.Index(
                "finished_at",
                condition=models.Q(finished_at__isnull=False),
                name="pgpubsub_task_finished",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.path} {self.id}"

    @classmethod
    def prune(cls, older_than: timedelta, backend: str | None = None) -> int:
        """Delete results of tasks that have finished before that, and return their number.

        *backend* is an alias of TASKS; None: all. The times are the server's, whatever the
        clocks of workers show.
        """
        finished = cls.objects.filter(finished_at__lt=Now() - older_than)
        if backend is not None:
            finished = finished.filter(backend=backend)
        return int(finished.delete()[0])


class PeriodicRecord(models.Model):
    """Up to when the clock has sent to a `PeriodicChannel`."""

    channel = models.CharField(max_length=63, primary_key=True)
    due = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.channel} {self.due}"
