"""The tables, and one dish that every database has."""

from typing import Any

from django.db import migrations, models


def add_bread(apps: Any, schema_editor: Any) -> None:
    if schema_editor.connection.alias == "default":
        apps.get_model("sample", "Dish").objects.create(name="bread")


class Migration(migrations.Migration):
    initial = True
    operations = [  # noqa: RUF012  # Django's way to declare them
        migrations.CreateModel(
            "Dish",
            [
                ("id", models.BigAutoField(primary_key=True)),
                ("name", models.CharField(max_length=50, unique=True)),
            ],
        ),
        migrations.CreateModel(
            "Review",
            [
                ("id", models.BigAutoField(primary_key=True)),
                ("text", models.CharField(max_length=50)),
                ("dish", models.ForeignKey("sample.dish", models.CASCADE, related_name="reviews")),
            ],
        ),
        migrations.CreateModel(
            "Visit",
            [
                ("id", models.BigAutoField(primary_key=True)),
                ("guest", models.CharField(max_length=50)),
            ],
        ),
        migrations.RunPython(add_bread),
    ]
