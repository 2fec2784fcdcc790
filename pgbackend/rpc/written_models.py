"""Client models as Python, written from what a service says it exposes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from .described import Described

# Django's own fields, in order of how much of the service's field they keep.
_PLAIN = frozenset(
    [
        "AutoField",
        "BigAutoField",
        "BigIntegerField",
        "BinaryField",
        "BooleanField",
        "CharField",
        "DateField",
        "DateTimeField",
        "DecimalField",
        "DurationField",
        "EmailField",
        "FloatField",
        "GenericIPAddressField",
        "IntegerField",
        "JSONField",
        "PositiveBigIntegerField",
        "PositiveIntegerField",
        "PositiveSmallIntegerField",
        "SlugField",
        "SmallAutoField",
        "SmallIntegerField",
        "TextField",
        "TimeField",
        "URLField",
        "UUIDField",
    ]
)
_RELATIONS = frozenset({"ForeignKey", "OneToOneField", "ManyToManyField"})
_OPTIONS = ("max_length", "max_digits", "decimal_places", "primary_key", "unique")


def module_of(exposed: Mapping[str, Described], database: str) -> str:
    """Return a module with a model for each of *exposed*, whose alias is *database*."""
    parts = [
        f'"""Models of the service {database!r}, written by `manage.py rpc_models`."""\n\n'
        "from django.db import models\n\n"
        "from pgbackend.rpc import RpcModel\n"
    ]
    names = _class_names(exposed)
    parts += [_class(exposed[label], names, database) for label in sorted(exposed)]
    return "\n\n".join(parts)


def _class_names(labels: Iterable[str]) -> dict[str, str]:
    """Return the classes' names by label; the application's is before one that several have."""
    count = Counter(label.split(".")[1] for label in labels)
    names = {}
    for label in labels:
        app_label, name = label.split(".")
        before = app_label.title().replace("_", "") if count[name] > 1 else ""
        names[label] = before + name
    return names


def _class(each: Described, names: Mapping[str, str], database: str) -> str:
    app_label, name = each.label.split(".")
    lines = [f"class {names[each.label]}(RpcModel):"]
    left_out: list[str] = []
    readonly: list[str] = []
    for attname, schema in each.properties.items():
        if schema.get("writeOnly"):
            continue
        line = _field(attname, schema, each, names)
        if line is None:
            left_out.append(attname)
            continue
        if line:
            lines.append(f"    {line}")
        if schema.get("readOnly") and not schema.get("x-options", {}).get("primary_key"):
            readonly.append(attname)
    lines += [f"    {line}" for line in _many(each, names)]
    lines += [f"    # {attname} has no field here: declare it yourself." for attname in left_out]
    lines += ["", "    class Rpc:", f'        app_label = "{app_label}"']
    if names[each.label] != name:
        lines.append(f'        name = "{name}"')
    if database != "rpc":
        lines.append(f'        database = "{database}"')
    if readonly and each.writable:
        words = ", ".join(f'"{attname}"' for attname in readonly)
        lines.append(f"        readonly = ({words},)")
    return "\n".join(lines) + "\n"


def _field(
    attname: str, schema: Mapping[str, Any], each: Described, names: Mapping[str, str]
) -> str | None:
    """Return the line of one field; an empty one for Django's own key, None where there is none."""
    kind = schema.get("x-field", "")
    options = dict(schema.get("x-options", {}))
    if kind in _RELATIONS:
        return _relation(attname, kind, options, each, names)
    if kind not in _PLAIN:
        return None
    if options.get("primary_key") and attname == "id" and kind == "BigAutoField":
        # What DEFAULT_AUTO_FIELD makes, as a project has it by default.
        return ""
    options.pop("unique" if options.get("primary_key") else "", None)
    words = [f"{name}={options[name]!r}" for name in _OPTIONS if options.get(name)]
    if options.get("null"):
        words += ["null=True", "blank=True"]
    return f"{attname} = models.{kind}({', '.join(words)})"


def _relation(
    attname: str,
    kind: str,
    options: Mapping[str, Any],
    each: Described,
    names: Mapping[str, str],
) -> str:
    to = str(options.get("to"))
    name = attname.rpartition("_")[0]
    null = ", null=True, blank=True" if options.get("null") else ""
    if to not in names:
        # The other model is not exposed: the value of its key is all there is.
        return f"{attname} = models.BigIntegerField({null.removeprefix(', ')})"
    back = _back(each.relations.get(name, {}))
    target = names[to] if to != each.label else "self"
    return f'{name} = models.{kind}("{target}", models.DO_NOTHING{back}{null})'


def _many(each: Described, names: Mapping[str, str]) -> list[str]:
    lines = []
    for name, relation in each.relations.items():
        if relation.get("kind") != "ManyToManyField" or relation.get("to") not in names:
            continue
        same = relation["to"] == each.label
        target = "self" if same else names[relation["to"]]
        extra = ", symmetrical=False" if same else ""
        back = _back(relation)
        lines.append(f'{name} = models.ManyToManyField("{target}"{extra}{back}, blank=True)')
    return lines


def _back(relation: Mapping[str, Any]) -> str:
    name = relation.get("related_name")
    return f', related_name="{name}"' if name else ""
