"""What a function finds inside its greenlet: the exception that its caller handles."""

import asyncio
import gc
import sys
import traceback
import weakref
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
from django.db import IntegrityError
from django.db.models.signals import pre_save

from pgbackend import await_bridged, bridged
from tests.models import Author, Book


class Handled(Exception):
    pass


async def test_the_exception_that_is_handled() -> None:
    """A function sees the exception that its caller handles, before and after it has waited."""

    @bridged
    def look() -> list[BaseException | None]:
        before = sys.exception()
        await_bridged(asyncio.sleep(0))
        return [before, sys.exception()]

    assert await look() == [None, None]
    error = Handled()
    try:
        raise error
    except Handled:
        seen = await look()
    assert seen == [error, error]
    frames = traceback.extract_tb(error.__traceback__)
    assert [frame.name for frame in frames] == ["test_the_exception_that_is_handled"]
    assert await look() == [None, None]


async def test_raised_again() -> None:
    """A bare ``raise`` in the function raises that exception."""

    @bridged
    def raise_again() -> None:
        raise  # what is tested

    error = Handled()
    with pytest.raises(Handled) as caught:
        try:
            raise error
        except Handled:
            await raise_again()
    assert caught.value is error
    assert error.__context__ is None


async def test_context() -> None:
    """An exception of the function has that one in its context, as in synchronous code."""
    await Author.objects.acreate(pk=1, name="Ada")
    error = Handled()
    with pytest.raises(IntegrityError) as caught:
        try:
            raise error
        except Handled:
            await Author.objects.acreate(pk=1, name="Ada")
    driver_error = caught.value.__cause__
    assert driver_error is not None
    assert caught.value.__context__ is driver_error
    assert driver_error.__context__ is error


async def test_receivers() -> None:
    """A receiver that logs what is handled finds it."""
    seen = []

    def receive(**kwargs: object) -> None:
        seen.append(sys.exception())

    pre_save.connect(receive, sender=Book)
    error = Handled()
    try:
        raise error
    except Handled:
        await Book.objects.acreate(title="one", author=await Author.objects.acreate(name="Ada"))
    finally:
        pre_save.disconnect(receive, sender=Book)
    assert seen == [error]


async def test_nothing_is_kept() -> None:
    """Neither the greenlet nor a cycle keeps the exception, also where it is raised again."""

    @bridged
    def raise_again() -> None:
        raise  # what is tested

    @bridged
    def raise_another() -> None:
        raise ValueError

    async def fail(function: Callable[[], Awaitable[object]]) -> "weakref.ref[Handled]":
        try:
            raise Handled
        except Handled as error:
            found = weakref.ref(error)
            with suppress(Handled, ValueError):
                await function()
        return found

    gc.collect()
    gc.disable()
    try:
        for function in (bridged(lambda: None), raise_again, raise_another):
            assert (await fail(function))() is None
    finally:
        gc.enable()
