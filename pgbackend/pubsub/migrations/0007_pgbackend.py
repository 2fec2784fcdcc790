"""Make the table of stored notifications, or take over that of django-pgpubsub with its rows.

The application has the label of django-pgpubsub, whose migrations end with 0006. Whichever of them
were applied, the table is completed here; in a project that never had it, it is made.
"""

import django.db.models.functions.datetime
from django.db import migrations, models

import pgbackend.pubsub.payload
from pgbackend.pubsub.schema import drop_table, make_or_complete_table


class Migration(migrations.Migration):
    initial = True
    dependencies = []
    operations = [
        migrations.SeparateDatabaseAndState(
            state_operations=[
                migrations.CreateModel(
                    name="Notification",
                    fields=[
                        (
                            "id",
                            models.BigAutoField(
                                auto_created=True,
                                primary_key=True,
                                serialize=False,
                                verbose_name="ID",
                            ),
                        ),
                        ("channel", models.CharField(max_length=63)),
                        (
                            "payload",
                            models.JSONField(decoder=pgbackend.pubsub.payload.PayloadDecoder),
                        ),
                        (
                            "created_at",
                            models.DateTimeField(
                                db_default=django.db.models.functions.datetime.Now(),
                                editable=False,
                                null=True,
                            ),
                        ),
                        ("db_version", models.IntegerField(blank=True, null=True)),
                        (
                            "state",
                            models.CharField(
                                choices=[
                                    ("ready", "Ready"),
                                    ("delayed", "Delayed"),
                                    ("leased", "Leased"),
                                    ("dead", "Dead"),
                                    ("plain", "Plain"),
                                ],
                                db_default="ready",
                                max_length=7,
                            ),
                        ),
                        ("priority", models.SmallIntegerField(db_default=0)),
                        ("attempts", models.IntegerField(db_default=0)),
                        ("run_after", models.DateTimeField(blank=True, null=True)),
                        ("lease_until", models.DateTimeField(blank=True, null=True)),
                        ("worker", models.TextField(blank=True, null=True)),
                        ("last_error", models.TextField(blank=True, null=True)),
                        ("order_key", models.TextField(blank=True, null=True)),
                        ("headers", models.JSONField(blank=True, null=True)),
                    ],
                    options={
                        "ordering": ["id"],
                        "constraints": [
                            models.CheckConstraint(
                                condition=models.Q(
                                    ("state__in", ["ready", "delayed", "leased", "dead", "plain"])
                                ),
                                name="pgpubsub_notification_state",
                            )
                        ],
                        "indexes": [
                            models.Index(
                                models.F("channel"),
                                models.OrderBy(models.F("priority"), descending=True),
                                models.F("id"),
                                condition=models.Q(("state", "ready")),
                                name="pgpubsub_notification_ready",
                            ),
                            models.Index(
                                models.F("run_after"),
                                condition=models.Q(("state", "delayed")),
                                name="pgpubsub_notification_later",
                            ),
                            models.Index(
                                models.F("lease_until"),
                                condition=models.Q(("state", "leased")),
                                name="pgpubsub_notification_lease",
                            ),
                            models.Index(
                                models.F("channel"),
                                models.F("order_key"),
                                models.F("id"),
                                condition=models.Q(
                                    ("order_key__isnull", False),
                                    models.Q(
                                        ("state", "ready"),
                                        ("state", "delayed"),
                                        ("state", "leased"),
                                        _connector="OR",
                                    ),
                                ),
                                name="pgpubsub_notification_order",
                            ),
                            models.Index(
                                models.F("created_at"),
                                condition=models.Q(("state", "plain")),
                                name="pgpubsub_notification_plain",
                            ),
                        ],
                    },
                ),
            ],
        ),
        migrations.RunPython(make_or_complete_table, drop_table),
    ]
