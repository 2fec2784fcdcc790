"""Dishes and what people say of them; visits are on the second database."""

from django.db import models


class Dish(models.Model):
    name = models.CharField(max_length=50, unique=True)


class Review(models.Model):
    dish = models.ForeignKey(Dish, models.CASCADE, related_name="reviews")
    text = models.CharField(max_length=50)


class Visit(models.Model):
    guest = models.CharField(max_length=50)
