"""Public names of a package that are imported on first use (PEP 562)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def on_first_use(
    namespace: dict[str, Any], places: Mapping[str, str | None]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` for the package whose globals are *namespace*.

    *places* has the module of each public name, as it is called in the package; None: the name is
    that of a module.
    """
    package = namespace["__name__"]

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        place = places[name]
        if place is None:
            return import_module(f".{name}", package)
        namespace[name] = value = getattr(import_module(f".{place}", package), name)
        return value

    def names() -> list[str]:
        """Return all names, including those that were not imported yet."""
        return sorted({*namespace, *places})

    return get, names
