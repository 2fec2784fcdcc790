"""Keep keys of any length, and refuse rows that wait for nothing."""

from django.db import migrations, models

from pgbackend.pubsub.schema import add_keys_and_states, remove_keys_and_states


class Migration(migrations.Migration):
    dependencies = [("pgpubsub", "0008_taskrecord")]
    operations = [
        migrations.SeparateDatabaseAndState(
            state_operations=[
                migrations.AddConstraint(
                    model_name="notification",
                    constraint=models.CheckConstraint(
                        condition=(
                            models.Q(("state", "delayed"), _negated=True)
                            | models.Q(("run_after__isnull", False))
                        )
                        & (
                            models.Q(("state", "leased"), _negated=True)
                            | models.Q(("lease_until__isnull", False))
                        ),
                        name="pgpubsub_notification_due",
                    ),
                ),
            ],
        ),
        migrations.RunPython(add_keys_and_states, remove_keys_and_states),
    ]
