"""A site with the admin of models of a service."""

from typing import Any, ClassVar

from django.contrib import admin
from django.urls import path

from tests.rpc.waiter.models import Dish, Order, Station, Tag, Waiter

site = admin.AdminSite(name="panel")


class OrderInline(admin.TabularInline):
    model = Order
    fields: ClassVar[list[str]] = ["waiter", "count"]
    extra = 1


@admin.register(Dish, site=site)
class DishAdmin(admin.ModelAdmin):
    list_display: ClassVar[list[str]] = ["name", "price", "station", "listed"]
    list_editable: ClassVar[list[str]] = ["price"]
    list_filter: ClassVar[list[str]] = ["listed", "station", "created"]
    list_select_related: ClassVar[list[str]] = ["station"]
    search_fields: ClassVar[list[str]] = ["name", "station__name"]
    date_hierarchy = "created"
    filter_horizontal: ClassVar[list[str]] = ["labels"]
    autocomplete_fields: ClassVar[list[str]] = ["station"]
    inlines: ClassVar[list[Any]] = [OrderInline]
    list_per_page = 3


@admin.register(Station, site=site)
class StationAdmin(admin.ModelAdmin):
    ordering: ClassVar[list[str]] = ["name"]
    search_fields: ClassVar[list[str]] = ["name"]


site.register([Tag, Waiter, Order])

urlpatterns = [path("panel/", site.urls)]
