"""The table whose trigger notifies."""

from django.db import models


class Message(models.Model):
    sent = models.BigIntegerField()
