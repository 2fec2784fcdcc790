"""Addresses of the views."""

from django.urls import path

from . import views

urlpatterns = [
    path("dishes/", views.dishes),
    path("dishes/in/<str:alias>/", views.dishes_in),
    path("dishes/in/<str:alias>/synchronously/", views.dishes_in_synchronously),
    path("dishes/synchronously/", views.dishes_synchronously),
    path("dishes/<str:name>/review/", views.review),
]
