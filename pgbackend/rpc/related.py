"""Relations between models of a service: their names, and many-to-many managers without tables."""

from __future__ import annotations

from typing import Any

from django.db import models, router
from django.db.models import F
from django.db.models.fields.related import RelatedField, lazy_related_operation
from django.db.models.fields.related_descriptors import ManyToManyDescriptor
from django.db.models.signals import m2m_changed
from django.utils.functional import cached_property

from . import recording
from .protocol import nodes
from .queryset import RpcQuerySet
from .router import service_alias


def name_by_service(field: Any, remote_name: str) -> None:
    """Let the way back over *field* have its default name from the service's model.

    The classes may have other names here, and paths travel as they are.
    """
    if not isinstance(field, RelatedField) or field.remote_field.related_name is not None:
        return
    if field.many_to_many and field.remote_field.symmetrical:
        return
    name = remote_name.lower()
    field.remote_field.related_name = name if field.one_to_one else f"{name}_set"
    if field.remote_field.related_query_name is None:
        field.remote_field.related_query_name = name


def replace_managers(model: Any) -> None:
    """Give the many-to-many fields of *model* managers that send messages, from both sides."""
    for field in model._meta.local_many_to_many:
        setattr(model, field.name, RpcManyToManyDescriptor(field.remote_field, reverse=False))
        _hide_rows(field.remote_field.through)
        lazy_related_operation(_replace_reverse, model, field.remote_field.model, field=field)


def _replace_reverse(_model: Any, other: Any, field: Any) -> None:
    name = field.remote_field.get_accessor_name()
    if name is not None and not field.remote_field.hidden:
        setattr(other, name, RpcManyToManyDescriptor(field.remote_field, reverse=True))


def _hide_rows(through: Any) -> None:
    """Let Django find no row of a model that it has made for the rows between two others.

    They are the service's own, which deletes them itself. Whoever collects what is deleted with an
    instance, as the admin does, asks the base manager.
    """
    if not getattr(through, "_meta", None) or not through._meta.auto_created:
        return
    # By its name: Django forgets the base manager itself whenever a model is made.
    through.add_to_class("no_rows", _NoRows())
    through._meta.base_manager_name = "no_rows"


class _NoRows(models.Manager.from_queryset(RpcQuerySet)):  # type: ignore[misc]
    def get_queryset(self) -> Any:
        return super().get_queryset().none()


class RpcManyToManyDescriptor(ManyToManyDescriptor):
    """Django's descriptor, with a manager that knows no table between the two."""

    @cached_property
    def related_manager_cls(self) -> Any:
        return _manager_class(super().related_manager_cls)


def _manager_class(base: Any) -> Any:
    class RpcRelatedManager(base):
        """The related rows: a queryset, and changes that are one message each."""

        def __init__(self, instance: Any = None) -> None:
            super().__init__(instance)
            # The relation as a whole: a path to the key of the other side may not be exposed.
            self.core_filters = {self.query_field_name: instance}

        def __call__(self, *, manager: str) -> Any:
            return _manager_class(type(super().__call__(manager=manager)))(instance=self.instance)

        do_not_call_in_templates = True

        def exists(self) -> Any:
            return self.get_queryset().exists()

        def count(self) -> Any:
            return self.get_queryset().count()

        def add(self, *objs: Any, through_defaults: Any = None) -> None:
            self._change("add", objs, "related_add", through_defaults=_sent(through_defaults))

        def remove(self, *objs: Any) -> None:
            self._change("remove", objs, "related_remove")

        def set(self, objs: Any, *, clear: bool = False, through_defaults: Any = None) -> None:
            self._send(
                "related_set",
                self._keys(tuple(objs)),
                clear=clear,
                through_defaults=_sent(through_defaults),
            )

        def clear(self) -> None:
            self._signal("pre_clear", None)
            self._send("related_clear")
            self._signal("post_clear", None)

        add.alters_data = remove.alters_data = True  # type: ignore[attr-defined]
        set.alters_data = clear.alters_data = True  # type: ignore[attr-defined]

        def _change(self, action: str, objs: tuple[Any, ...], end: str, **options: Any) -> None:
            keys = self._keys(objs)
            if not keys:
                return
            self._signal(f"pre_{action}", set(keys))
            self._send(end, keys, **options)
            self._signal(f"post_{action}", set(keys))

        def _keys(self, objs: tuple[Any, ...]) -> list[Any]:
            found: list[Any] = []
            for each in objs:
                if isinstance(each, models.Model):
                    if not isinstance(each, self.model):
                        raise TypeError(
                            f"'{self.model._meta.object_name}' instance expected, got {each!r}"
                        )
                    each = recording.instance(each).pk
                found.append(self.model._meta.pk.get_prep_value(each))
            return list(dict.fromkeys(found))

        def _send(self, end: str, *keys: Any, **options: Any) -> None:
            kept = getattr(self.instance, "_prefetched_objects_cache", {})
            kept.pop(self.prefetch_cache_name, None)
            model = type(self.instance)
            using = self._db or router.db_for_write(model, instance=self.instance)
            name = self.prefetch_cache_name
            made = nodes.Op(end, (recording.recorded(self.instance.pk), name, *keys), options)
            tree = nodes.Tree(model.Rpc.label, (), made)
            service_alias(using, model).future(
                tree, convert=lambda found: found, model=model
            ).result()

        def _signal(self, action: str, keys: Any) -> None:
            m2m_changed.send(
                sender=self.through,
                action=action,
                instance=self.instance,
                reverse=self.reverse,
                model=self.model,
                pk_set=keys,
                using=self._db or router.db_for_write(type(self.instance), instance=self.instance),
            )

        def get_prefetch_querysets(self, instances: Any, querysets: Any = None) -> Any:
            """Return what Django's `prefetch_related_objects` works with."""
            found = querysets[0] if querysets else self.model._meta.default_manager.all()
            if self._db:
                found = found.using(self._db)
            path = self.query_field_name
            found = found.filter(**{f"{path}__in": instances}).annotate(
                prefetch_related_val=F(path)
            )
            return (
                found,
                lambda result: result.prefetch_related_val,
                lambda instance: instance.pk,
                False,
                self.prefetch_cache_name,
                False,
            )

    return RpcRelatedManager


def _sent(through_defaults: Any) -> Any:
    if through_defaults is None:
        return None
    return {name: recording.recorded(value) for name, value in through_defaults.items()}
