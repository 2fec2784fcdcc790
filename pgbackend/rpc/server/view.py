"""The view that takes messages over HTTP: for clients that have nothing else."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt

from ...wrapper.dispatch import bridged
from ..protocol.answers import refusal, seal_answer
from ..protocol.errors import TooLarge
from .running import handle
from .settings import service

CONTENT_TYPE = "text/plain; charset=utf-8"


async def _view(request: HttpRequest) -> HttpResponse:
    """Answer the message in the body of a POST: the text of a message in, that of its answer out.

    The status is 200 whenever there is an answer, also one that says what was refused: the seal is
    what tells who is who. 405 is for other methods, 413 for a body above ``max_bytes``. There is no
    CSRF token, as no cookie means anything here. Works under ASGI and WSGI.
    """
    if request.method != "POST":
        return HttpResponse(status=405, headers={"Allow": "POST"})
    most = service().limits.max_bytes
    if _length(request) > most:
        return _too_large(most)
    # Django reads it for us, in memory; more than the limit it has refused above or does not have.
    body: Any = request.read(most + 1)
    if len(body) > most:
        return _too_large(most)
    return HttpResponse(await bridged(handle)(body), content_type=CONTENT_TYPE)


def _length(request: HttpRequest) -> int:
    try:
        return int(request.META.get("CONTENT_LENGTH") or 0)
    except ValueError:
        return 0


def _too_large(most: int) -> HttpResponse:
    error = TooLarge(f"more than {most} bytes", {"max_bytes": most})
    answer = seal_answer(refusal(error), service().keys, None)
    return HttpResponse(answer, status=413, content_type=CONTENT_TYPE)


rpc_view: Any = csrf_exempt(_view)
