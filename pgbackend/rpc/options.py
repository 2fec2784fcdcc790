"""What ``class Rpc`` of a model of a service says."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ImproperlyConfigured

_KNOWN = {"app_label", "name", "database", "fields", "readonly"}


class RpcOptions:
    """The options of one model, as its attribute ``Rpc``; *declared* is the class as it stands.

    *app_label* and *name* are the model's in the service (by default those here), *database* the
    alias of the service ("rpc"). *fields* are the names of those that are fetched (None: all that
    the model declares), *readonly* of those that are never sent.
    """

    def __init__(self, model: Any, declared: Any) -> None:
        given = {name for name in dir(declared) if not name.startswith("_")}
        if wrong := sorted(given - _KNOWN):
            raise ImproperlyConfigured(
                f"class Rpc of {model.__qualname__} has {', '.join(wrong)}; it may have"
                f" {', '.join(sorted(_KNOWN))}"
            )
        self.model = model
        self.declared = declared
        self.app_label: str = getattr(declared, "app_label", None) or model._meta.app_label
        self.name: str = getattr(declared, "name", None) or model.__name__
        self.database: str = getattr(declared, "database", "rpc")
        self.readonly: tuple[str, ...] = tuple(getattr(declared, "readonly", ()) or ())
        self._fields = getattr(declared, "fields", None)

    @property
    def label(self) -> str:
        """The model's name in messages, "app.Model"."""
        return f"{self.app_label}.{self.name}"

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the fields that are fetched."""
        meta = self.model._meta
        if self._fields is None:
            return tuple(field.attname for field in meta.concrete_fields)
        return tuple(meta.get_field(name).attname for name in self._fields)


def options_of(model: Any) -> RpcOptions | None:
    """Return the options of a model of a service; None for other models."""
    found = getattr(model, "Rpc", None)
    return found if isinstance(found, RpcOptions) else None
