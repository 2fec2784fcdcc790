"""The examples of the page on health checks."""

from __future__ import annotations

import json
import re
import sys

import pytest
from django.test import AsyncClient, override_settings

from tests.pages.examples import ROOT, example

PAGE = "docs/howto/health.md"
URLS = example(PAGE, "urlpatterns")


async def test_urls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both paths answer, the second one as the page shows it."""
    monkeypatch.setitem(sys.modules, "urls_of_page", URLS.run("urls_of_page"))
    (shown,) = re.findall(r"^```json\n(.*?)^```$", (ROOT / PAGE).read_text(), re.M | re.S)
    expected = json.loads(shown)
    with override_settings(ROOT_URLCONF="urls_of_page"):
        client = AsyncClient()
        assert (await client.get("/health/live")).json() == {"status": "alive"}
        found = (await client.get("/health/ready")).json()
    assert found["status"] == expected["status"]
    assert found["databases"]["default"].keys() == expected["databases"]["default"].keys()
