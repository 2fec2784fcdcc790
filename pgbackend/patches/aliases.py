"""Which databases the synchronous twin of a Django a-method will use, by Django's own rules.

Django's a-methods hand a method of a queryset, a manager, an instance or a cache to a thread. Where
the database decides between the bridge and a thread (`a_methods`), this module asks the router
before the twin does. The router's answer is kept for the twin, so that the router is asked only
once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from operator import is_
from types import ModuleType
from typing import Any

from django.core.cache.backends.db import BaseDatabaseCache
from django.core.exceptions import FieldDoesNotExist
from django.db import DEFAULT_DB_ALIAS, connections, router
from django.db.models import Manager, Model

# Methods of querysets that read from the database they write to.
_WRITES = frozenset(
    {
        "bulk_create",
        "bulk_update",
        "create",
        "delete",
        "get_or_create",
        "update",
        "update_or_create",
    }
)

# Methods of many-to-many managers that change rows of the intermediate table.
_OF_THROUGH = frozenset({"add", "clear", "remove", "set"})

# Methods of the database cache that ask the router for reading; or for reading, then writing.
_CACHE_READS = frozenset({"get", "get_many", "has_key"})
_CACHE_BOTH = frozenset({"get_or_set", "incr", "decr", "incr_version", "decr_version"})

# A question to the router with its answer: the method's name, the model, the hints, the alias.
_Answer = tuple[str, Any, dict[str, Any], str]

# The router's answers so far, each kept for the next caller with the same question.
_answers: ContextVar[list[_Answer] | None] = ContextVar("pgbackend_router_answers", default=None)


@contextmanager
def remembering() -> Iterator[None]:
    """Keep each of the router's answers in the block for one more caller with the same question."""
    answers: list[_Answer] = []
    token = _answers.set(answers)
    try:
        yield
    finally:
        # Tasks that were started in the block share the list, so empty it.
        answers.clear()
        # Do not reset in another context: the block's coroutine may be collected in another thread.
        if _answers.get() is answers:
            _answers.reset(token)


def answering(name: str, ask: Callable[..., Any]) -> Callable[..., Any]:
    """Return the router's method *name*, which first looks for an answer that was kept."""

    @functools.wraps(ask)
    def route(self: Any, model: Any, **hints: Any) -> Any:
        for answer in _answers.get() or ():
            if (
                answer[:2] == (name, model)
                and answer[2].keys() == hints.keys()
                and all(map(is_, answer[2].values(), map(hints.get, answer[2])))
            ):
                _forget(answer)
                return answer[3]
        return ask(self, model, **hints)

    return route


def _forget(answer: _Answer) -> None:
    answers = _answers.get()
    assert answers is not None
    answers[:] = [each for each in answers if each is not answer]


def _ask(name: str, model: Any, **hints: Any) -> str:
    alias = str(getattr(router, name)(model, **hints))
    if (answers := _answers.get()) is not None:
        answers.append((name, model, hints, alias))
    return alias


def of(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> set[str]:
    """Return the aliases that the twin *function* will use; an empty set if they are unknown."""
    if len(connections.settings) == 1:
        return {DEFAULT_DB_ALIAS}
    subject: Any = getattr(function, "__self__", None)
    name = getattr(function, "__name__", "")
    if isinstance(subject, BaseDatabaseCache):
        return _of_cache(subject, name)
    if isinstance(subject, Model):
        return {_of_instance(subject, name, kwargs.get("using"))}
    if isinstance(subject, Manager) and hasattr(subject, "instance"):
        return {_of_related_manager(subject, name)}
    if hasattr(subject, "_prefetch_related_lookups"):
        return of_queryset(subject, writes=name in _WRITES)
    if args and isinstance(args[0], Sequence) and args[0] and isinstance(args[0][0], Model):
        # The call is prefetch_related_objects(instances, *lookups).
        instance = args[0][0]
        alias = instance._state.db or DEFAULT_DB_ALIAS
        return _prefetched(type(instance), alias, args[1:])
    if (alias := _free_variable(function, "using")) is not None:
        # The function saves a session.
        return {str(alias)}
    return set()


def _free_variable(function: Any, name: str) -> Any:
    code = getattr(function, "__code__", None)
    if code is None or name not in code.co_freevars:
        return None
    return function.__closure__[code.co_freevars.index(name)].cell_contents


def _of_cache(cache: Any, name: str) -> set[str]:
    questions = ["db_for_read"] if name in _CACHE_READS | _CACHE_BOTH else []
    if name not in _CACHE_READS:
        questions.append("db_for_write")
    return {_ask(question, cache.cache_model_class) for question in questions}


def _of_instance(instance: Any, name: str, using: str | None) -> str:
    if using:
        return using
    if name != "refresh_from_db":
        return _ask("db_for_write", type(instance), instance=instance)
    return instance._state.db or _ask("db_for_read", type(instance), instance=instance)


def _of_related_manager(manager: Any, name: str) -> str:
    model = manager.model
    if hasattr(manager, "through"):
        model = manager.through if name in _OF_THROUGH else type(manager.instance)
    return _ask("db_for_write", model, instance=manager.instance)


def of_queryset(queryset: Any, *, writes: bool = False) -> set[str]:
    """Return the aliases that a queryset will use, prefetching included."""
    alias = queryset._db
    if not alias:
        writes = writes or getattr(queryset, "_for_write", False)
        question = "db_for_write" if writes else "db_for_read"
        alias = _ask(question, queryset.model, **queryset._hints)
    return _prefetched(queryset.model, alias, queryset._prefetch_related_lookups)


def _prefetched(model: Any, alias: str, lookups: Iterable[Any]) -> set[str]:
    """Return *alias*, and the aliases of the models that *lookups* follow from there.

    Return all aliases if a model is not known before its rows are read.
    """
    aliases = {alias}
    for lookup in lookups:
        at: Any = model
        for name in getattr(lookup, "prefetch_through", lookup).split("__"):
            at = at and _related(at, name)
            if at is None:
                return set(connections)
            aliases.add(_of_related(at, alias))
        queryset = getattr(lookup, "queryset", None)
        if queryset is not None:
            if queryset._db:
                aliases.add(queryset._db)
            aliases |= _prefetched(queryset.model, alias, queryset._prefetch_related_lookups)
    return aliases


def _related(model: Any, name: str) -> Any:
    """Return the model at the other end of the relation *name*, or None if it has several."""
    for relation in model._meta.related_objects:
        if relation.get_accessor_name() == name:
            return relation.related_model
    try:
        return model._meta.get_field(name).related_model
    except FieldDoesNotExist:
        return None


def _of_related(model: Any, alias: str) -> str:
    """Return the alias for reading rows of *model* that belong to a row on *alias*."""
    # Django asks with that row as a hint, and uses the row's alias if no router answers.
    for each in router.routers:
        if (ask := getattr(each, "db_for_read", None)) and (chosen := ask(model)):
            return str(chosen)
    return alias


def patch(module: ModuleType) -> None:
    """Let the twin find the router's answer that was kept for it. (Django 5.2 to 6.1.)"""
    router = module.ConnectionRouter
    for name in ("db_for_read", "db_for_write"):
        setattr(router, name, answering(name, getattr(router, name)))
