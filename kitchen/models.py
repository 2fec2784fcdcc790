from __future__ import annotations

from decimal import Decimal
from typing import Any

from django.db import models
from django.db.models import Q
from django.urls import reverse


class Dish(models.Model):
    class Course(models.TextChoices):
        STARTER = "starter", "Starters"
        MAIN = "main", "Mains"
        DESSERT = "dessert", "Desserts"
        DRINK = "drink", "Drinks"

    name = models.CharField(max_length=80, unique=True)
    description = models.CharField(max_length=200, blank=True)
    course = models.CharField(max_length=10, choices=Course, default=Course.MAIN)
    price = models.DecimalField(max_digits=6, decimal_places=2)
    stock = models.IntegerField(default=0, help_text="Portions that can still be ordered.")

    class Meta:
        ordering = ["name"]
        verbose_name_plural = "dishes"
        constraints = [
            models.CheckConstraint(
                name="dish_stock_not_negative",
                condition=Q(stock__gte=0),
                violation_error_message="The stock cannot be less than zero.",
            ),
            models.CheckConstraint(
                name="dish_price_not_negative",
                condition=Q(price__gte=0),
                violation_error_message="The price cannot be less than zero.",
            ),
        ]

    def __str__(self) -> str:
        return self.name

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.pk,
            "name": self.name,
            "description": self.description,
            "course": self.course,
            "price": self.price,
            "stock": self.stock,
        }


class Customer(models.Model):
    name = models.CharField(max_length=80, unique=True)

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return self.name


class OrderQuerySet(models.QuerySet["Order"]):
    def detailed(self) -> OrderQuerySet:
        """Fetch what a page shows of an order: its customer, its lines and their dishes."""
        return self.select_related("customer").prefetch_related(
            models.Prefetch("lines", OrderLine.objects.select_related("dish"))
        )

    def place(self, customer: Any, lines: Any) -> Order:
        """Place an order that another site sends. Raise ValidationError."""
        # It imports the models of this module.
        from kitchen import desk

        return desk.place(customer, lines)

    place.alters_data = True

    def advance(self, pk: Any) -> Order:
        """Move one of these orders on, for another site. Raise DoesNotExist or ValidationError."""
        from kitchen import desk

        return desk.advance(self.get(pk=pk))

    advance.alters_data = True


class Order(models.Model):
    class Status(models.TextChoices):
        PLACED = "placed", "Placed"
        COOKING = "cooking", "Cooking"
        READY = "ready", "Ready"

    customer = models.ForeignKey(Customer, on_delete=models.PROTECT, related_name="orders")
    status = models.CharField(max_length=10, choices=Status, default=Status.PLACED)
    placed_at = models.DateTimeField(auto_now_add=True)
    cooking_at = models.DateTimeField(null=True, blank=True)
    ready_at = models.DateTimeField(null=True, blank=True)

    objects = OrderQuerySet.as_manager()

    class Meta:
        ordering = ["-pk"]
        constraints = [
            models.CheckConstraint(
                name="order_status_has_its_time",
                condition=Q(status="placed")
                | Q(status="cooking", cooking_at__isnull=False)
                | Q(status="ready", ready_at__isnull=False),
                violation_error_message="An order that is cooking or ready needs the time of it.",
            ),
        ]
        indexes = [
            # The board asks for these two; most orders are old and in neither.
            models.Index(
                name="order_open",
                fields=["placed_at"],
                condition=Q(status__in=["placed", "cooking"]),
            ),
            models.Index(name="order_ready", fields=["-ready_at"], condition=Q(status="ready")),
        ]

    def __str__(self) -> str:
        return f"Order {self.pk}"

    def get_absolute_url(self) -> str:
        return reverse("order", args=[self.pk])

    @property
    def total(self) -> Decimal:
        return sum((line.total for line in self.lines.all()), Decimal())

    def as_json(self) -> dict[str, Any]:
        """Return what the API and the board say of an order that was fetched `detailed()`."""
        return {
            "id": self.pk,
            "status": self.status,
            "customer": self.customer.name,
            "placed_at": self.placed_at,
            "cooking_at": self.cooking_at,
            "ready_at": self.ready_at,
            "lines": [line.as_json() for line in self.lines.all()],
            "total": self.total,
        }


class OrderLine(models.Model):
    order = models.ForeignKey(Order, on_delete=models.CASCADE, related_name="lines")
    dish = models.ForeignKey(Dish, on_delete=models.PROTECT, related_name="lines")
    quantity = models.PositiveIntegerField()
    price = models.DecimalField(
        max_digits=6, decimal_places=2, help_text="Of one portion, when it was ordered."
    )

    class Meta:
        ordering = ["pk"]
        constraints = [
            models.UniqueConstraint(name="orderline_dish_once", fields=["order", "dish"]),
            models.CheckConstraint(
                name="orderline_quantity_positive",
                condition=Q(quantity__gte=1),
                violation_error_message="Order at least one portion.",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.quantity} of {self.dish}"

    @property
    def total(self) -> Decimal:
        return self.price * self.quantity

    def as_json(self) -> dict[str, Any]:
        return {
            "dish": self.dish_id,
            "name": self.dish.name,
            "quantity": self.quantity,
            "price": self.price,
        }


class Ticket(models.Model):
    """What the kitchen's printer has printed for an order."""

    # Nothing here keeps an order from having two: that it has one is the listener's doing.
    order = models.ForeignKey(Order, on_delete=models.CASCADE, related_name="tickets")
    text = models.TextField()
    printed_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-pk"]

    def __str__(self) -> str:
        return f"Ticket {self.pk}"
