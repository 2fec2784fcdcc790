"""The paths, and who may see them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import AsyncClient, override_settings
from django.urls import include, path, reverse

from pgbackend.status.urls import patterns

MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]


async def by_coroutine(user: User) -> bool:
    return await User.objects.filter(pk=user.pk, username="ada").aexists()


def by_permission(user: User) -> bool:
    return user.has_perm("auth.view_user")


@pytest.mark.parametrize("allowed", [by_coroutine, by_permission, lambda user: user.is_superuser])
async def test_patterns(allowed: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Another test may ask the database, awaited or not; who fails it sees neither."""
    module: Any = ModuleType("urls_of_status")
    module.urlpatterns = [path("deep/status/", include(patterns(allowed)))]
    monkeypatch.setitem(sys.modules, "urls_of_status", module)
    with override_settings(ROOT_URLCONF="urls_of_status", MIDDLEWARE=MIDDLEWARE):
        assert reverse("pgbackend_status:page") == "/deep/status/"
        client = AsyncClient()
        await client.aforce_login(await User.objects.acreate(username="ada", is_superuser=True))
        assert (await client.get("/deep/status/")).status_code == 200
        await client.aforce_login(await User.objects.acreate(username="bob", is_staff=True))
        assert (await client.get("/deep/status/")).status_code == 302
        assert (await client.get("/deep/status/events")).status_code == 403
