"""A command that runs an event loop of its own, as commands do."""

import asyncio
from typing import Any

from django.core.management.base import BaseCommand

from sample.models import Dish


class Command(BaseCommand):
    help = "Print how many dishes there are."

    def handle(self, *args: Any, **options: Any) -> None:
        self.stdout.write(str(asyncio.run(Dish.objects.acount())))
