"""The server's tables."""

from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="SeenNonce",
            fields=[
                ("nonce", models.CharField(max_length=200, primary_key=True, serialize=False)),
                ("until", models.DateTimeField()),
            ],
            options={
                "indexes": [models.Index("until", name="pgbackend_rpc_nonce_until")],
            },
        ),
        migrations.CreateModel(
            name="StoredAnswer",
            fields=[
                ("scope", models.CharField(max_length=64, primary_key=True, serialize=False)),
                ("tree", models.CharField(max_length=64)),
                ("answer", models.TextField()),
                ("created_at", models.DateTimeField()),
            ],
            options={
                "indexes": [models.Index("created_at", name="pgbackend_rpc_answer_created")],
            },
        ),
        migrations.RunSQL(
            "ALTER TABLE pgbackend_rpc_server_seennonce SET UNLOGGED",
            "ALTER TABLE pgbackend_rpc_server_seennonce SET LOGGED",
        ),
    ]
