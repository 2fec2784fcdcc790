"""Make the table of tasks and their results."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("pgpubsub", "0007_pgbackend")]
    operations = [
        migrations.CreateModel(
            name="TaskRecord",
            fields=[
                ("id", models.CharField(max_length=32, primary_key=True, serialize=False)),
                ("path", models.TextField()),
                ("backend", models.TextField()),
                ("queue_name", models.TextField()),
                ("priority", models.SmallIntegerField(default=0)),
                ("run_after", models.DateTimeField(blank=True, null=True)),
                ("status", models.CharField(max_length=10)),
                ("args", models.JSONField(default=list)),
                ("kwargs", models.JSONField(default=dict)),
                ("enqueued_at", models.DateTimeField()),
                ("started_at", models.DateTimeField(blank=True, null=True)),
                ("last_attempted_at", models.DateTimeField(blank=True, null=True)),
                ("finished_at", models.DateTimeField(blank=True, null=True)),
                ("return_value", models.JSONField(blank=True, null=True)),
                ("errors", models.JSONField(default=list)),
                ("worker_ids", models.JSONField(default=list)),
            ],
            options={
                "indexes": [
                    models.Index(
                        models.F("finished_at"),
                        condition=models.Q(("finished_at__isnull", False)),
                        name="pgpubsub_task_finished",
                    )
                ],
            },
        ),
    ]
