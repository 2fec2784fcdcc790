"""Tables with triggers."""

from django.db import models


class Author(models.Model):
    name = models.TextField()
    alternative = models.TextField(db_column="other", null=True)
    rating = models.DecimalField(max_digits=40, decimal_places=20, null=True)


class Post(models.Model):
    author = models.ForeignKey(Author, models.CASCADE)
    content = models.TextField()
