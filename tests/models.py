"""Models for the tests: one of each kind of relation, and overrides that must be honoured."""

from typing import Any

from django.contrib.contenttypes.fields import GenericForeignKey, GenericRelation
from django.contrib.contenttypes.models import ContentType
from django.db import models


class Tag(models.Model):
    """Tags any object."""

    name = models.CharField(max_length=50)
    content_type = models.ForeignKey(ContentType, models.CASCADE)
    object_id = models.PositiveBigIntegerField()
    target = GenericForeignKey()


class Author(models.Model):
    name = models.CharField(max_length=50, unique=True)
    tags = GenericRelation(Tag)

    def __str__(self) -> str:
        return self.name


class BookQuerySet(models.QuerySet["Book"]):
    def cheap(self) -> "BookQuerySet":
        return self.filter(price__lt=10)

    def delete(self) -> tuple[int, dict[str, int]]:
        """Never delete a book that is on loan."""
        return self.filter(on_loan=False)._original_delete()

    def _original_delete(self) -> tuple[int, dict[str, int]]:
        return super().delete()


class Book(models.Model):
    title = models.CharField(max_length=100)
    author = models.ForeignKey(Author, models.CASCADE, related_name="books", null=True)
    readers = models.ManyToManyField(Author, related_name="reads")
    price = models.IntegerField(default=0)
    on_loan = models.BooleanField(default=False)
    data = models.JSONField(default=dict)
    published = models.DateTimeField(null=True)
    # How often save() of this class ran: not a column.
    saves = 0

    objects = BookQuerySet.as_manager()

    class Meta:
        ordering = ["pk"]

    def save(self, *args: Any, **kwargs: Any) -> None:
        self.saves += 1
        self.title = self.title.strip()
        super().save(*args, **kwargs)


class Elsewhere(models.Model):
    """Lives in the second database, by the router."""

    name = models.CharField(max_length=50)
