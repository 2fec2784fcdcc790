"""What all workers of a service have to know: nonces that were seen, and answers of writes."""

from __future__ import annotations

from typing import ClassVar

from django.db import models


class SeenNonce(models.Model):
    """The nonce of a message that was taken, kept until its deadline would refuse it, too.

    The migration makes the table UNLOGGED: a nonce is one small insert for each message, and a
    table that is not logged costs no flush. A crash of the database server empties it; until the
    deadlines of the messages before it have passed, these can be replayed once.
    """

    # The key's id and the nonce.
    nonce = models.CharField(max_length=200, primary_key=True)
    until = models.DateTimeField()

    class Meta:
        indexes: ClassVar[list[models.Index]] = [
            models.Index("until", name="pgbackend_rpc_nonce_until"),
        ]

    def __str__(self) -> str:
        return f"{self.nonce}"


class StoredAnswer(models.Model):
    """The answer of a write, stored in the transaction of the write.

    Whoever sends the write again, with its idempotency key, is given the same answer.
    """

    # A digest of key id, principal, idempotency key and the tree's place in its batch.
    scope = models.CharField(max_length=64, primary_key=True)
    # A digest of the tree: a key that comes with another tree is an error of the client.
    tree = models.CharField(max_length=64)
    answer = models.TextField()
    created_at = models.DateTimeField()

    class Meta:
        indexes: ClassVar[list[models.Index]] = [
            models.Index("created_at", name="pgbackend_rpc_answer_created"),
        ]

    def __str__(self) -> str:
        return f"{self.scope}"
