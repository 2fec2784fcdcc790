"""Views that read and write, asynchronous and synchronous."""

import asyncio

from django.db import transaction
from django.dispatch import Signal
from django.http import HttpRequest, JsonResponse

from .models import Dish, Review

reviewed = Signal()


async def dishes(request: HttpRequest) -> JsonResponse:
    names = [dish.name async for dish in Dish.objects.order_by("name")]
    return JsonResponse({"names": names})


def dishes_synchronously(request: HttpRequest) -> JsonResponse:
    return JsonResponse(
        {"names": list(Dish.objects.order_by("name").values_list("name", flat=True))}
    )


async def dishes_in(request: HttpRequest, alias: str) -> JsonResponse:
    return JsonResponse({"names": [dish.name async for dish in Dish.objects.using(alias)]})


def dishes_in_synchronously(request: HttpRequest, alias: str) -> JsonResponse:
    return JsonResponse({"names": [dish.name for dish in Dish.objects.using(alias)]})


async def review(request: HttpRequest, name: str) -> JsonResponse:
    """Write two reviews of a dish at once and tell the receivers of `reviewed`."""
    async with transaction.atomic():
        dish = await Dish.objects.aget(name=name)
        await asyncio.gather(*(write(dish, text) for text in ("first", "second")))
        await reviewed.asend(Review, dish=dish)
    return JsonResponse({"reviews": await dish.reviews.acount()})


async def write(dish: Dish, text: str) -> Review:
    async with transaction.atomic():
        return await Review.objects.acreate(dish=dish, text=text)
