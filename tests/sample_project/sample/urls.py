"""Addresses of the views."""

from django.urls import path

from . import views

urlpatterns = [
    path("dishes/", views.dishes),
    path("dishes/synchronously/", views.dishes_synchronously),
    path("dishes/<str:name>/review/", views.review),
]
