"""Fill an empty database with a menu, some customers and some orders."""

from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand
from django.db import transaction
from django.utils import timezone

from kitchen.models import Customer, Dish, Order, OrderLine

Course = Dish.Course

DISHES = [
    (Course.STARTER, "Tomato soup", "Roasted tomatoes, basil oil, warm sourdough", "6.50", 20),
    (Course.STARTER, "Beetroot carpaccio", "Goat's cheese, walnuts, orange dressing", "8.00", 12),
    (Course.STARTER, "Hummus and flatbread", "Chickpeas, tahini, smoked paprika", "6.00", 25),
    (Course.MAIN, "Mushroom risotto", "Arborio rice, porcini, thyme, parmesan", "14.50", 15),
    (Course.MAIN, "Braised beef cheek", "Red wine, root vegetables, mashed potatoes", "19.00", 8),
    (Course.MAIN, "Grilled sea bass", "Fennel, lemon butter, new potatoes", "18.50", 6),
    (Course.MAIN, "Aubergine lasagne", "Layers of aubergine, ricotta, tomato", "13.50", 50),
    (Course.DESSERT, "Lemon tart", "Crème fraîche, candied zest", "6.50", 10),
    (Course.DESSERT, "Chocolate mousse", "Dark chocolate, sea salt, olive oil", "6.00", 2),
    (Course.DESSERT, "Poached pear", "Saffron, vanilla ice cream", "7.00", 0),
    (Course.DRINK, "Elderflower spritz", "Elderflower, soda, mint, lime", "5.00", 40),
    (Course.DRINK, "House red", "A glass of Montepulciano", "5.50", 30),
]

ORDERS = [
    ("Grace", Order.Status.READY, {"Tomato soup": 1, "Grilled sea bass": 1, "House red": 1}),
    ("Edsger", Order.Status.COOKING, {"Mushroom risotto": 2, "Elderflower spritz": 2}),
    ("Barbara", Order.Status.PLACED, {"Hummus and flatbread": 1, "Aubergine lasagne": 1}),
]


class Command(BaseCommand):
    help = "Fill an empty database with a menu and some orders; make an admin user if DEBUG."

    def handle(self, *args: Any, **options: Any) -> None:
        with transaction.atomic():
            if not Dish.objects.exists():
                self.load()
                self.stdout.write(f"Loaded {len(DISHES)} dishes and {len(ORDERS)} orders.")
            users = get_user_model().objects
            if settings.DEBUG and not users.filter(is_superuser=True).exists():
                users.create_superuser("admin", password="admin")
                self.stdout.write("Made the user admin with the password admin.")

    def load(self) -> None:
        dishes = {
            name: Dish(course=course, name=name, description=about, price=price, stock=stock)
            for course, name, about, price, stock in DISHES
        }
        Dish.objects.bulk_create(dishes.values())
        now = timezone.now()
        for name, status, quantities in ORDERS:
            order = Order.objects.create(
                customer=Customer.objects.create(name=name),
                status=status,
                cooking_at=None if status == Order.Status.PLACED else now,
                ready_at=now if status == Order.Status.READY else None,
            )
            OrderLine.objects.bulk_create(
                OrderLine(
                    order=order, dish=dishes[dish], quantity=quantity, price=dishes[dish].price
                )
                for dish, quantity in quantities.items()
            )
