"""``atomic`` as a decorator: the block lasts as long as the function or the coroutine.

Django's decorator leaves the block when the function returns. A coroutine has not begun by then,
and its statements would be in no transaction.
"""

from __future__ import annotations

import functools
import gc
import inspect
import sys
from collections.abc import Callable
from contextlib import ContextDecorator, nullcontext
from types import CodeType, FunctionType
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.db import DEFAULT_DB_ALIAS

from ..wrapper.dispatch import is_enabled

Function = Callable[..., Any]

_ASYNCHRONOUS = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR

# The code of the closure over block and function that `ContextDecorator` makes.
(_DECORATED,) = (
    each for each in ContextDecorator.__call__.__code__.co_consts if isinstance(each, CodeType)
)


def decorating(decorate: Function) -> Function:
    """Return ``Atomic.__call__`` whose block lasts as long as a coroutine function's coroutine."""

    @functools.wraps(decorate)
    def __call__(self: Any, function: Function) -> Function:
        if inspect.isasyncgenfunction(function):
            raise _refusal_of_generator(function)
        if iscoroutinefunction(function):
            return _awaiting(self, function)
        return decorate(self, _returning_no_coroutine(self, function))  # type: ignore[no-any-return]  # Django is untyped

    return __call__


def recreating(recreate: Function) -> Function:
    """Return ``Atomic._recreate_cm``, which decorators call for the block of each call.

    A subclass may have its own decorator that knows nothing of coroutine functions: refuse those.
    """

    @functools.wraps(recreate)
    def _recreate_cm(self: Any) -> Any:
        caller = sys._getframe(1)
        code = caller.f_code
        # The function in Django's own decorator checks its result itself.
        if code is not _DECORATED and not code.co_flags & _ASYNCHRONOUS:
            for name in code.co_freevars:
                function = caller.f_locals.get(name)
                if iscoroutinefunction(function) and _is_ours(self):
                    raise _refusal_of_coroutine(function)
        return recreate(self)

    return _recreate_cm


def _awaiting(block: Any, function: Function) -> Function:
    @functools.wraps(function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        async with block:
            return await function(*args, **kwargs)

    return call


def _returning_no_coroutine(block: Any, function: Function) -> Function:
    """Return *function* with a TypeError, raised in the block, if it returns a coroutine.

    The dispatch() of a class with asynchronous views returns one; a callable object, or a
    synchronous decorator around a coroutine function, may do so, too.
    """

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if inspect.iscoroutine(result) and _is_ours(block):
            result.close()
            raise _refusal_of_coroutine(function)
        if inspect.isasyncgen(result) and _is_ours(block):
            raise _refusal_of_generator(function)
        return result

    return call


def _is_ours(block: Any) -> bool:
    """Return whether the block's database is bridged, so that it may be entered on the loop."""
    return is_enabled(block.using or DEFAULT_DB_ALIAS)


def _refusal_of_coroutine(function: Any) -> TypeError:
    return TypeError(
        f"atomic() cannot see that {function!r} is asynchronous: the transaction would end before"
        " its coroutine begins. Decorate the coroutine function itself, below other decorators,"
        " or put `async with transaction.atomic():` around what belongs together"
    )


def _refusal_of_generator(function: Any) -> TypeError:
    return TypeError(
        f"atomic() cannot decorate {function!r}, an asynchronous generator: the transaction"
        " would stay open while its caller does other things. Put `async with"
        " transaction.atomic():` around what belongs together"
    )


# What was decorated before


class _NoBlock:
    """A stand-in for the block of a function that enters the block itself."""

    def _recreate_cm(self) -> Any:
        return nullcontext()


def adopt_decorated(atomic: type) -> list[str]:
    """Treat the functions that *atomic* has decorated already as `decorating` does.

    The wrappers made by the decorator of `contextlib` may be referenced anywhere, so they stay: the
    function inside each is replaced. Return the names of the asynchronous functions.
    """
    decorated = {
        id(wrapper): wrapper
        for wrapper in gc.get_referrers(_DECORATED)
        if isinstance(wrapper, FunctionType) and wrapper.__code__ is _DECORATED
    }
    adopted: list[str] = []

    def adopt(wrapper: FunctionType) -> None:
        cells = dict(zip(_DECORATED.co_freevars, wrapper.__closure__ or (), strict=True))
        block, function = cells["self"].cell_contents, cells["func"].cell_contents
        if not isinstance(block, atomic):
            return
        if (inner := decorated.pop(id(function), None)) is not None:
            # The function was decorated twice: treat the inner wrapper first, since the outer one
            # depends on its kind.
            adopt(inner)
        if inspect.isasyncgenfunction(function):
            cells["func"].cell_contents = _refusing(function)
        elif iscoroutinefunction(function):
            cells["func"].cell_contents = _awaiting(block, function)
            cells["self"].cell_contents = _NoBlock()
            markcoroutinefunction(wrapper)
            adopted.append(_name(function))
        else:
            cells["func"].cell_contents = _returning_no_coroutine(block, function)

    while decorated:
        adopt(decorated.popitem()[1])
    return adopted


def _name(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return f"{function.__module__}.{getattr(function, '__qualname__', repr(function))}"


def _refusing(function: Function) -> Function:
    @functools.wraps(function)
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise _refusal_of_generator(function)

    return refuse
