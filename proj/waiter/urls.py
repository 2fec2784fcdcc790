from django.urls import path

from proj.waiter import views

urlpatterns = [
    path("", views.menu, name="menu"),
    path("orders/", views.orders, name="orders"),
    path("orders/<int:pk>/advance/", views.advance, name="advance"),
]
