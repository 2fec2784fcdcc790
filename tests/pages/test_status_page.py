"""The examples of the page on the status page."""

from __future__ import annotations

import sys

import pytest
from django.test import AsyncClient, override_settings

from tests.pages.examples import example

PAGE = "docs/howto/status-page.md"
STAFF = example(PAGE, 'include("pgbackend.status.urls")')
OTHERS = example(PAGE, "may_look")


@pytest.mark.parametrize("urls", [STAFF, OTHERS], ids=["staff", "others"])
async def test_urls(urls: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is there, and not for everybody."""
    module = urls.run("urls_of_page")  # type: ignore[attr-defined]  # an example
    monkeypatch.setitem(sys.modules, "urls_of_page", module)
    middleware = [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
    ]
    with override_settings(ROOT_URLCONF="urls_of_page", MIDDLEWARE=middleware):
        answer = await AsyncClient().get("/status/")
    assert answer.status_code == 302
    assert answer.headers["Location"].endswith("?next=/status/")
