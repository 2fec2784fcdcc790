"""The view of the service of the tests."""

from django.urls import path

from pgbackend.rpc.server.view import rpc_view

urlpatterns = [path("rpc/", rpc_view)]
