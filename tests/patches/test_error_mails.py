"""Error mails are sent from a thread."""

from __future__ import annotations

from typing import Any

import django
import pytest
from django.core.mail.backends.base import BaseEmailBackend
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.utils.functional import SimpleLazyObject

from tests.models import Elsewhere
from tests.site import pages
from tests.support.client import serving
from tests.support.places import connections_elsewhere, in_a_thread, note, ran
from tests.support.server import Server
from tests.support.wrapper import until


async def failing_lazily(request: HttpRequest) -> HttpResponse:
    request.user = SimpleLazyObject(Elsewhere.objects.first)
    raise RuntimeError("this view fails")


urlpatterns = [*pages.urlpatterns, path("failing/lazily/", failing_lazily)]


class NotingEmails(BaseEmailBackend):
    """Keeps the mails, and notes where they were sent."""

    def send_messages(self, emails: list[Any]) -> int:
        note("emails")
        sent.extend(emails)
        return len(emails)


sent: list[Any] = []


@pytest.fixture
def mails() -> dict[str, Any]:
    """Settings by which errors are mailed to the ADMINS."""
    sent.clear()
    ran.clear()
    backend = f"{__name__}.NotingEmails"
    if django.VERSION < (6, 0):
        return {"ADMINS": [("Ops", "ops@example.com")], "EMAIL_BACKEND": backend}
    if django.VERSION < (6, 1):
        return {"ADMINS": ["ops@example.com"], "EMAIL_BACKEND": backend}
    return {"ADMINS": ["ops@example.com"], "MAILERS": {"default": {"BACKEND": backend}}}


async def test_error_mails_keep_their_thread(mails: dict[str, Any]) -> None:
    """An error is mailed to the ADMINS from a thread."""
    with serving(**mails) as client:
        assert (await client.get("/failing/")).status == 500
        assert (await client.get("/nowhere/")).status == 404
    (email,) = sent
    assert email.subject == "[Django] ERROR (EXTERNAL IP): Internal Server Error: /failing/"
    assert "RuntimeError at /failing/\nthis view fails" in email.body
    assert in_a_thread("emails")


async def test_error_mails_leave_no_connection(server: Server, mails: dict[str, Any]) -> None:
    """What a mail tells of the request may be fetched; the thread's connection is closed."""
    await Elsewhere.objects.acreate(name="Ada")
    before = connections_elsewhere(server)
    with serving(ROOT_URLCONF=__name__, **mails) as client:
        assert (await client.get("/failing/lazily/")).status == 500
    (email,) = sent
    assert "USER: Elsewhere object (1)" in email.body
    await until(lambda: connections_elsewhere(server) == before)
