"""`expose`: what of a model may be reached from outside, and by whom."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from django.core.exceptions import ImproperlyConfigured
from django.db import models

from .changes import register_trigger
from .exposure import LOOKUPS, Exposure
from .registry import register

C = TypeVar("C", bound=type)

# How `expose` takes names: for all paths, or by path, "*" for the others.
NamesByPath = Iterable[str] | Mapping[str, Iterable[str]]


def expose(model: type[models.Model], **options: Any) -> Callable[[C], C]:
    """Expose *model* as far as the *options* name it; nothing else of it can be reached.

    Call it, or decorate a class whose attributes are the options. All default to nothing, but for
    those that say otherwise:

    - *readable*: names of fields with a column: they are returned, and conditions, expressions and
      values may name them. The primary key always is.
    - *writable*: names of fields that a write may set; many-to-many ones, too.
    - *paths*: paths over relations, ``"station__name"``, which conditions, expressions and values
      may name, and relations, ``"orders"``, which may be counted, selected and prefetched. Each
      model on the way has to be exposed, and the field at the end be readable there.
    - *lookups*: names, or names by path; ``"*"`` stands for all other paths. Without it: `LOOKUPS`.
    - *transforms*: likewise, ``{"created": ["year"]}``.
    - *json_keys*: JSON fields in which a condition may name any key.
    - *ordering*: paths that may be ordered by; True: all of them.
    - *aggregates*, *functions*: names, of those in docs/reference/rpc.md.
    - *operations*: of "read", "create", "update", "delete"; without it "read" alone.
    - *methods*: names of manager methods for `call`. They count as writes; those in a mapping with
      True as their value only read.
    - *rows*: ``(principal, queryset)`` returns the queryset of what the principal may see. It holds
      wherever the model is read: in relations, prefetches and subqueries, too.
    - *writable_rows*: likewise for what may be changed or deleted; without it all that is seen.
    - *permission*: ``(principal, operation, model)`` returns whether the principal may do it;
      *operation* is one of those above or a method's name. `model_permissions` asks Django's.
    - *max_rows*, *max_affected*: below those of the service.
    - *full_clean*: False: writes are not validated.
    - *explain*: True: the plan of a query may be asked for. It names tables and columns.
    - *subscribe*: True: clients may wait for changes of the rows. The model's tables get triggers
      by django-pgtrigger, so run ``makemigrations``.
    - *manager*: the name of a manager; without it the model's default one.

    Raise ImproperlyConfigured for a wrong option; names are looked at when the first message comes,
    and by ``manage.py check``.
    """
    _register(model, options)

    def declare(declaration: C) -> C:
        found = {name: getattr(declaration, name) for name in dir(declaration) if name[:1] != "_"}
        _register(model, {**options, **found}, anew=True)
        return declaration

    return declare


def _register(model: type[models.Model], options: Mapping[str, Any], *, anew: bool = False) -> None:
    exposure = _exposure(model, options)
    register(exposure, anew=anew)
    if exposure.subscribe:
        register_trigger(model)


def model_permissions(principal: Any, operation: str, model: type[models.Model]) -> bool:
    """Ask Django's permissions: a `permission` for `expose`, where the principal is a user.

    Reading asks for "view", writes for "add", "change" and "delete", a method for "change".
    """
    opts = model._meta
    action = {"read": "view", "create": "add", "delete": "delete"}.get(operation, "change")
    return principal is not None and bool(
        principal.has_perm(f"{opts.app_label}.{action}_{opts.model_name}")
    )


def _exposure(model: type[models.Model], options: Mapping[str, Any]) -> Exposure:
    if not (isinstance(model, type) and issubclass(model, models.Model)):
        raise ImproperlyConfigured(f"expose takes a model, not {model!r}")
    if unknown := options.keys() - _OPTIONS.keys():
        raise ImproperlyConfigured(
            f"expose({model._meta.label}): unknown options {', '.join(sorted(unknown))}"
        )
    try:
        read = {name: _OPTIONS[name](value) for name, value in options.items()}
    except (TypeError, ValueError) as error:
        raise ImproperlyConfigured(f"expose({model._meta.label}): {error}") from error
    read.setdefault("lookups", {"*": LOOKUPS})
    return Exposure(model=model, **read)


def _texts(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or not all(isinstance(each, str) for each in value):
        raise TypeError(f"{value!r} is no sequence of names")
    return tuple(value)


def _set(value: Any) -> frozenset[str]:
    return frozenset(_texts(value))


def _by_path(value: Any) -> dict[str, frozenset[str]]:
    if isinstance(value, Mapping):
        return {path: _set(each) for path, each in value.items()}
    return {"*": _set(value)}


def _ordering(value: Any) -> frozenset[str] | bool:
    return value if isinstance(value, bool) else _set(value)


def _methods(value: Any) -> dict[str, bool]:
    if isinstance(value, Mapping):
        return {name: _switch(reads) for name, reads in value.items()}
    return dict.fromkeys(_texts(value), False)


def _callable(value: Any) -> Any:
    if value is not None and not callable(value):
        raise TypeError(f"{value!r} cannot be called")
    return value


def _number(value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise TypeError(f"{value!r} is no number of rows")
    return value


def _switch(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{value!r} is neither True nor False")
    return value


def _name(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{value!r} is no name")
    return value


_OPTIONS: Mapping[str, Callable[[Any], Any]] = {
    "readable": _texts,
    "writable": _texts,
    "paths": _texts,
    "lookups": _by_path,
    "transforms": _by_path,
    "json_keys": _set,
    "ordering": _ordering,
    "aggregates": _set,
    "functions": _set,
    "operations": _set,
    "methods": _methods,
    "rows": _callable,
    "writable_rows": _callable,
    "permission": _callable,
    "max_rows": _number,
    "max_affected": _number,
    "full_clean": _switch,
    "explain": _switch,
    "subscribe": _switch,
    "manager": _name,
}
