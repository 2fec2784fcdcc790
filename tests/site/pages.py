"""A site for the tests of requests: asynchronous views with synchronous ORM access."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

from django.contrib import messages
from django.contrib.auth import aauthenticate, alogin
from django.contrib.auth.decorators import login_required, permission_required
from django.contrib.auth.models import User
from django.core.exceptions import PermissionDenied
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    HttpResponseRedirect,
    StreamingHttpResponse,
)
from django.shortcuts import render
from django.template.response import TemplateResponse
from django.urls import path
from django.utils.decorators import sync_and_async_middleware
from django.views import View

from pgbackend import bridged
from tests.models import Author, Book
from tests.site import stateful

# Synchronous access in asynchronous code


async def foreign_key(request: HttpRequest) -> HttpResponse:
    book = await Book.objects.aget()
    return HttpResponse(book.author.name)


async def deferred_field(request: HttpRequest) -> HttpResponse:
    # An author of whom only the key was fetched.
    return HttpResponse(Author.from_db("default", ["id"], [1]).name)


async def length(request: HttpRequest) -> HttpResponse:
    return HttpResponse(len(Author.objects.all()))


async def truth(request: HttpRequest) -> HttpResponse:
    return HttpResponse("some" if Author.objects.all() else "none")


async def iteration(request: HttpRequest) -> HttpResponse:
    return HttpResponse(";".join(author.name for author in Author.objects.order_by("pk")))


async def index(request: HttpRequest) -> HttpResponse:
    return HttpResponse(Author.objects.order_by("pk")[0].name)


async def groups_rendered(request: HttpRequest) -> HttpResponse:
    return render(request, "groups.html", {"member": await User.objects.aget()})


async def groups_of_template_response(request: HttpRequest) -> HttpResponse:
    return TemplateResponse(request, "groups.html", {"member": await User.objects.aget()})


async def gathered(request: HttpRequest) -> HttpResponse:
    @bridged
    async def name_of_author(title: str) -> str:
        book = await Book.objects.aget(title=title)
        return book.author.name

    return HttpResponse(";".join(await asyncio.gather(*map(name_of_author, ("A", "A")))))


class Walking(View):
    async def get(self, request: HttpRequest) -> HttpResponse:
        return await foreign_key(request)


async def streamed(request: HttpRequest) -> HttpResponseBase:
    async def body() -> AsyncIterator[str]:
        for author in Author.objects.order_by("pk"):
            yield author.name
        async for book in Book.objects.all():
            yield f" wrote {book.title}, says {book.author.name}"

    return StreamingHttpResponse(body())


async def failing_stream(request: HttpRequest) -> HttpResponseBase:
    async def body() -> AsyncIterator[str]:
        yield "so far"
        raise RuntimeError("this body fails")

    return StreamingHttpResponse(body())


def walk_asynchronously(get_response: Any) -> Any:
    """Asynchronous middleware that adds the author of the book to each answer."""

    async def middleware(request: HttpRequest) -> HttpResponse:
        response: HttpResponse = await get_response(request)
        book = await Book.objects.aget()
        response["X-Author"] = book.author.name
        return response

    return sync_and_async_middleware(lambda get_response: middleware)(get_response)


walk_asynchronously.async_capable = True
walk_asynchronously.sync_capable = False


# Sessions and users


async def login(request: HttpRequest) -> HttpResponse:
    if request.method == "POST":
        user = await User.objects.aget(username=request.POST["username"])
        await alogin(request, user, "django.contrib.auth.backends.ModelBackend")
        return HttpResponseRedirect("/me/")
    return render(request, "login.html")


async def password(request: HttpRequest) -> HttpResponse:
    user = await aauthenticate(request, username="grace", password=request.GET["password"])
    return HttpResponse("wrong" if user is None else user.username)


@login_required
async def members(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.user.username)


@permission_required("auth.add_user", raise_exception=True)
async def staff(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.user.username)


async def me(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.user.username or "nobody")


async def visit(request: HttpRequest) -> HttpResponse:
    request.session["visits"] = request.session.get("visits", 0) + 1
    messages.info(request, "welcome back")
    return HttpResponse(request.session["visits"])


async def forbidden(request: HttpRequest) -> HttpResponse:
    raise PermissionDenied


async def failing(request: HttpRequest) -> HttpResponse:
    raise RuntimeError("this view fails")


# Synchronous views


def books(request: HttpRequest) -> HttpResponse:
    return render(request, "books.html", {"books": Book.objects.all()})


def thread(request: HttpRequest) -> HttpResponse:
    return HttpResponse(threading.current_thread().name)


urlpatterns = [
    *stateful.urlpatterns,
    path("foreign-key/", foreign_key),
    path("deferred-field/", deferred_field),
    path("length/", length),
    path("truth/", truth),
    path("iteration/", iteration),
    path("index/", index),
    path("groups/rendered/", groups_rendered),
    path("groups/template-response/", groups_of_template_response),
    path("gathered/", gathered),
    path("walking/", Walking.as_view()),
    path("streamed/", streamed),
    path("streamed/failing/", failing_stream),
    path("login/", login),
    path("me/", me),
    path("visit/", visit),
    path("password/", password),
    path("members/", members),
    path("staff/", staff),
    path("forbidden/", forbidden),
    path("failing/", failing),
    path("books/", books),
    path("thread/", thread),
    path("bridged-thread/", bridged(thread)),
]
