"""What of Django's request handlers is patched."""

import asyncio
from typing import Any

import pytest
from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import path


class NoResponse:
    """Middleware whose ``process_template_response`` returns nothing, a mistake."""

    sync_capable = async_capable = True

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        return self.get_response(request)


class NoResponseAwaited(NoResponse):
    async def process_template_response(self, request: HttpRequest, response: Any) -> None:
        pass


class NoResponseReturned(NoResponse):
    def process_template_response(self, request: HttpRequest, response: Any) -> None:
        pass


def rendered(request: HttpRequest) -> TemplateResponse:
    return TemplateResponse(request, "nothing.html")


urlpatterns = [path("", rendered)]


@pytest.mark.parametrize("middleware", [NoResponseAwaited, NoResponseReturned])
def test_errors_name_the_middleware(middleware: type[NoResponse]) -> None:
    """Django's error for such a middleware names its class, on either side of the adaption."""
    with override_settings(ROOT_URLCONF=__name__, MIDDLEWARE=[f"{__name__}.{middleware.__name__}"]):
        words = f"{middleware.__name__}.process_template_response didn't return an HttpResponse"
        with pytest.raises(ValueError, match=words):
            Client().get("/")
        with pytest.raises(ValueError, match=words):
            asyncio.run(AsyncClient().get("/"))
