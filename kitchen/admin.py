from decimal import Decimal

from django.contrib import admin
from django.db.models import F, QuerySet, Sum
from django.http import HttpRequest

from kitchen.models import Customer, Dish, Order, OrderLine, Ticket


@admin.register(Dish)
class DishAdmin(admin.ModelAdmin):
    list_display = ["name", "course", "price", "stock"]
    list_editable = ["price", "stock"]
    list_filter = ["course"]
    search_fields = ["name"]


class OrderInline(admin.TabularInline):
    model = Order
    fields = ["status", "placed_at"]
    readonly_fields = fields
    extra = 0
    can_delete = False
    show_change_link = True

    def has_add_permission(self, request: HttpRequest, obj: Customer | None = None) -> bool:
        return False


@admin.register(Customer)
class CustomerAdmin(admin.ModelAdmin):
    search_fields = ["name"]
    inlines = [OrderInline]


class OrderLineInline(admin.TabularInline):
    model = OrderLine
    fields = ["dish", "quantity", "price"]
    readonly_fields = fields
    extra = 0
    can_delete = False

    def has_add_permission(self, request: HttpRequest, obj: Order | None = None) -> bool:
        return False


@admin.register(Order)
class OrderAdmin(admin.ModelAdmin):
    list_display = ["__str__", "customer", "status", "total", "placed_at", "ready_at"]
    list_filter = ["status"]
    list_select_related = ["customer"]
    date_hierarchy = "placed_at"
    search_fields = ["customer__name"]
    autocomplete_fields = ["customer"]
    readonly_fields = ["placed_at"]
    inlines = [OrderLineInline]

    def has_add_permission(self, request: HttpRequest) -> bool:
        # An order takes from the stock, which the admin would not do.
        return False

    def get_queryset(self, request: HttpRequest) -> QuerySet[Order]:
        line = F("lines__price") * F("lines__quantity")
        return super().get_queryset(request).annotate(total_=Sum(line))

    @admin.display(description="total", ordering="total_")
    def total(self, order: Order) -> Decimal | None:
        return order.total_


@admin.register(Ticket)
class TicketAdmin(admin.ModelAdmin):
    list_display = ["__str__", "order", "text", "printed_at"]
    list_select_related = ["order"]
    date_hierarchy = "printed_at"

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Ticket | None = None) -> bool:
        return False
