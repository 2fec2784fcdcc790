from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("", include("kitchen.urls")),
    path("admin/", admin.site.urls),
    # For staff: what the pool and the database do.
    path("status/", include("pgbackend.status.urls")),
]
