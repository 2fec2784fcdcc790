"""Models whose rows another service has."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import models, router
from django.db.models.base import ModelBase
from django.db.models.signals import post_delete, post_save, pre_delete, pre_save

from . import related, saving
from .options import RpcOptions, options_of
from .queryset import RpcQuerySet

RpcManager = models.Manager.from_queryset(RpcQuerySet, "RpcManager")


class RpcModelBase(ModelBase):
    """Makes models that Django has no table for, with relations by the service's names."""

    def __new__(
        cls, name: str, bases: tuple[type, ...], attrs: dict[str, Any], **kwargs: Any
    ) -> Any:
        meta = attrs.get("Meta")
        if meta is not None and getattr(meta, "managed", False):
            raise ImproperlyConfigured(
                f"{name} is a model of a service, which has its table: remove Meta.managed"
            )
        if meta is not None:
            attrs["Meta"] = type("Meta", (meta,), {"managed": False})
        declared = attrs.pop("Rpc", None)
        inherited = next((_declared(each) for each in bases if hasattr(each, "Rpc")), None)
        if declared is not None and inherited is not None and not issubclass(declared, inherited):
            declared = type("Rpc", (declared, inherited), {})
        abstract = bool(getattr(meta, "abstract", False))
        remote_name = getattr(declared, "name", None) or name
        if not abstract:
            for each in attrs.values():
                related.name_by_service(each, remote_name)
        made = super().__new__(cls, name, bases, attrs, **kwargs)
        made.Rpc = declared or inherited or type("Rpc", (), {})
        if not made._meta.abstract:
            made.Rpc = RpcOptions(made, made.Rpc)
            related.replace_managers(made)
        return made


def _declared(model: Any) -> Any:
    options = options_of(model)
    return model.Rpc if options is None else options.declared


class RpcModel(models.Model, metaclass=RpcModelBase):
    """A model whose rows another service has, and exposes.

    ``class Rpc`` names the model there: see `RpcOptions`. Fields are declared as those of any
    model, as far as they are of use here. Querysets, `save` and `delete` send messages; signals
    are sent here around them, and the service sends its own.
    """

    objects = RpcManager()

    class Meta:
        abstract = True
        managed = False
        base_manager_name = "objects"

    def save_base(
        self,
        raw: bool = False,
        force_insert: Any = False,
        force_update: bool = False,
        using: str | None = None,
        update_fields: Any = None,
    ) -> None:
        """Send the instance; take over what the service has stored."""
        using = using or router.db_for_write(type(self), instance=self)
        options = {"instance": self, "raw": raw, "using": using, "update_fields": update_fields}
        pre_save.send(sender=type(self), **options)
        created = self._state.adding
        future = saving.write(
            self,
            using,
            raw=raw,
            force_insert=bool(force_insert),
            force_update=force_update,
            update_fields=update_fields,
        )
        saving.take_over(self, using, future.result(), update_fields)
        post_save.send(sender=type(self), created=created, **options)

    save_base.alters_data = True  # type: ignore[attr-defined]  # as Django's

    def delete(
        self, using: str | None = None, keep_parents: bool = False
    ) -> tuple[int, dict[str, int]]:
        """Delete the row, and what the service deletes with it; return what Django's does.

        Signals are sent here for this instance alone.
        """
        if self.pk is None:
            raise ValueError(
                f"{type(self)._meta.object_name} object can't be deleted because its"
                f" {type(self)._meta.pk.attname} attribute is set to None."
            )
        using = using or router.db_for_write(type(self), instance=self)
        pre_delete.send(sender=type(self), instance=self, using=using, origin=self)
        found = type(self)._meta.base_manager.using(using).filter(pk=self.pk)
        deleted: tuple[int, dict[str, int]] = found.delete()
        post_delete.send(sender=type(self), instance=self, using=using, origin=self)
        setattr(self, type(self)._meta.pk.attname, None)
        return deleted

    delete.alters_data = True  # type: ignore[attr-defined]  # as Django's

    @classmethod
    def check(cls, **kwargs: Any) -> list[Any]:
        """Return Django's messages, and those about models of services."""
        from .checks import check_model

        return [*super().check(**kwargs), *check_model(cls)]
