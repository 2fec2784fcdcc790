"""The kitchen's models, as far as a waiter needs them: no table here, no migration."""

from __future__ import annotations

from django.db import models

from pgbackend.rpc import RpcModel, RpcQuerySet


class KitchenModel(RpcModel):
    """A model of the application "kitchen" in the service "rpc"."""

    class Meta:
        abstract = True

    class Rpc:
        app_label = "kitchen"


class Dish(KitchenModel):
    class Course(models.TextChoices):
        STARTER = "starter", "Starters"
        MAIN = "main", "Mains"
        DESSERT = "dessert", "Desserts"
        DRINK = "drink", "Drinks"

    name = models.CharField(max_length=80, unique=True)
    description = models.CharField(max_length=200, blank=True)
    course = models.CharField(max_length=10, choices=Course)
    price = models.DecimalField(max_digits=6, decimal_places=2)
    stock = models.IntegerField()

    def __str__(self) -> str:
        return self.name


class Customer(KitchenModel):
    name = models.CharField(max_length=80, unique=True)

    def __str__(self) -> str:
        return self.name


class OrderQuerySet(RpcQuerySet):
    async def place(self, customer: str, quantities: dict[int, int]) -> Order:
        """Place an order for portions of dishes, by their keys. Raise ValidationError."""
        lines = [{"dish": pk, "quantity": quantity} for pk, quantity in quantities.items()]
        order: Order = await self.acall("place", customer, lines)
        return order

    async def advance(self, pk: int) -> Order:
        """Move an order to its next status. Raise DoesNotExist or ValidationError."""
        order: Order = await self.acall("advance", pk)
        return order


class Order(KitchenModel):
    class Status(models.TextChoices):
        PLACED = "placed", "Placed"
        COOKING = "cooking", "Cooking"
        READY = "ready", "Ready"

    customer = models.ForeignKey(Customer, on_delete=models.PROTECT, related_name="orders")
    status = models.CharField(max_length=10, choices=Status)
    placed_at = models.DateTimeField()

    objects = models.Manager.from_queryset(OrderQuerySet)()

    def __str__(self) -> str:
        return f"Order {self.pk}"


class OrderLine(KitchenModel):
    order = models.ForeignKey(Order, on_delete=models.CASCADE, related_name="lines")
    dish = models.ForeignKey(Dish, on_delete=models.PROTECT, related_name="lines")
    quantity = models.PositiveIntegerField()

    def __str__(self) -> str:
        return f"{self.quantity} of {self.dish}"
