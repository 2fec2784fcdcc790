"""Add what `unique_by`, `PeriodicChannel` and the end of a waiting task need."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("pgpubsub", "0009_keys_and_states")]
    operations = [
        migrations.AddField("notification", "unique_key", models.TextField(blank=True, null=True)),
        migrations.AddIndex(
            "notification",
            models.Index(
                models.F("channel"),
                models.F("unique_key"),
                condition=models.Q(
                    ("unique_key__isnull", False),
                    models.Q(("state", "ready"), ("state", "delayed"), _connector="OR"),
                ),
                name="pgpubsub_notification_unique",
            ),
        ),
        migrations.AddField(
            "taskrecord", "notification", models.BigIntegerField(blank=True, null=True)
        ),
        migrations.CreateModel(
            name="PeriodicRecord",
            fields=[
                ("channel", models.CharField(max_length=63, primary_key=True, serialize=False)),
                ("due", models.DateTimeField()),
            ],
        ),
    ]
