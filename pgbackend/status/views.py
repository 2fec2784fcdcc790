"""The page, its stream of server-sent events, and the two files that it needs.

The page needs neither templates nor static files of the project, and nothing inline: it works under
a strict Content-Security-Policy, its own.
https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar

from django.conf import settings
from django.contrib.auth.views import redirect_to_login
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIRequest
from django.db import connections, transaction
from django.http import HttpRequest, HttpResponse, HttpResponseForbidden, StreamingHttpResponse
from django.urls import NoReverseMatch, reverse
from django.utils.cache import get_conditional_response
from django.views import View

from ..wrapper.dispatch import bridged
from .sampling import one_snapshot, snapshots

__all__ = ["AssetView", "EventsView", "PageView", "is_active_staff"]

_FILES = {
    name: (Path(__file__).parent / "page" / name).read_bytes()
    for name in ("index.html", "status.css", "status.js")
}

_TYPES = {"status.css": "text/css; charset=utf-8", "status.js": "text/javascript; charset=utf-8"}

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

# When the page asks again, milliseconds: after its stream broke, and under WSGI for each snapshot.
_RETRY = 2000


def is_active_staff(user: Any) -> bool:
    """Return whether *user* may see the admin, as Django's ``staff_member_required`` asks."""
    return bool(user.is_active and user.is_staff)


class _NonAtomicView(View):
    http_method_names: ClassVar[list[str]] = ["get", "head", "options"]

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Callable[..., Any]:
        """Return the view, in no transaction, whatever ``ATOMIC_REQUESTS`` says."""
        view: Any = super().as_view(**initkwargs)
        for alias in connections.settings:
            view = transaction.non_atomic_requests(using=alias)(view)
        return view  # type: ignore[no-any-return]  # Django is untyped


class _StaffView(_NonAtomicView):
    # Takes the user; may be a coroutine function, and may use the ORM.
    allowed: Callable[[Any], Any] = staticmethod(is_active_staff)

    async def is_allowed(self, request: HttpRequest) -> bool:
        """Return whether the user of *request* may look."""
        auser = getattr(request, "auser", None)
        if auser is None:
            raise ImproperlyConfigured(
                "the pages of pgbackend.status need to know the user: put 'django.contrib.auth."
                "middleware.AuthenticationMiddleware' into MIDDLEWARE"
            )
        return bool(await bridged(self.allowed)(await auser()))


class PageView(_StaffView):
    """The page; others than staff are sent to the login of the admin, or to LOGIN_URL."""

    async def get(self, request: HttpRequest) -> HttpResponse:
        """Return the page."""
        if not await self.is_allowed(request):
            try:
                login = reverse("admin:login")
            except NoReverseMatch:
                login = settings.LOGIN_URL
            return redirect_to_login(request.get_full_path(), login)
        headers = {"Cache-Control": "no-store", "Content-Security-Policy": _POLICY}
        return HttpResponse(_FILES["index.html"], headers=headers)


class EventsView(_StaffView):
    """The stream; under WSGI, which would collect one that goes on, a single event of it."""

    async def get(self, request: HttpRequest) -> HttpResponse:
        """Return the stream, or status 403."""
        if not await self.is_allowed(request):
            return HttpResponseForbidden("For staff.\n", content_type="text/plain")
        kind = "text/event-stream"
        # nginx would buffer it otherwise.
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        if not isinstance(request, ASGIRequest):
            event = _event("single", await one_snapshot())
            return HttpResponse(event, content_type=kind, headers=headers)
        return StreamingHttpResponse(_events(), content_type=kind, headers=headers)

    async def head(self, request: HttpRequest) -> HttpResponse:
        """Return what `get` does, without a stream that nobody reads."""
        allowed = await self.is_allowed(request)
        return HttpResponse(status=200 if allowed else 403, content_type="text/event-stream")


async def _events() -> AsyncIterator[str]:
    # Closed with this one, or the sampler would go on until the collector has found it.
    async with aclosing(snapshots()) as stream:
        async for text in stream:
            yield _event("snapshot", text)
    # The page asks for the next stream at once.
    yield _event("end", "")


def _event(name: str, text: str) -> str:
    # JSON has no bare line breaks, which would end the event.
    return f"retry: {_RETRY}\nevent: {name}\ndata: {text}\n\n"


class AssetView(_NonAtomicView):
    """A file of the page's, *name*; there is nothing in it that not all may see."""

    name = ""

    async def get(self, request: HttpRequest) -> HttpResponse:
        """Return the file, or status 304 to a browser that has it."""
        found = _FILES[self.name]
        etag = f'"{sha256(found).hexdigest()[:16]}"'
        headers = {"Cache-Control": "no-cache", "ETag": etag}
        response = HttpResponse(found, content_type=_TYPES[self.name], headers=headers)
        return get_conditional_response(request, etag=etag, response=response)
