"""Callbacks when a module is imported.

Several modules of Django cannot be imported before the applications are loaded, but this backend is
imported as soon as the first model class is made.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from threading import get_ident
from types import ModuleType
from typing import Any

Callback = Callable[[ModuleType], None]


def after_import(name: str, callback: Callback) -> None:
    """Call *callback* with the module *name*: now if it is imported, else once it is.

    Call it again with the new module whenever the module is imported anew: after a first import
    that failed or was undone, and by `importlib.reload`.
    """
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
    _finder.callbacks[name].append(callback)
    module = sys.modules.get(name)
    if module is None:
        return
    if not _is_being_imported(module):
        callback(module)
    elif name not in _finder.loading:
        # The module's import is not complete, and the rest of its code would undo the changes.
        _finder.unfinished.append((name, callback))


def report_finished() -> None:
    """Call back for modules whose import was incomplete, if it has ended.

    Any later import does this, too.
    """
    _finder.report_finished()


def _is_being_imported(module: ModuleType) -> bool:
    # CPython sets the private ``_initializing`` while the module's code runs.
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


class _Finder(MetaPathFinder):
    """Asks the other finders, and has the modules with callbacks reported."""

    def __init__(self) -> None:
        self.callbacks: defaultdict[str, list[Callback]] = defaultdict(list)
        # The callbacks for modules that were being imported when they were registered.
        self.unfinished: list[tuple[str, Callback]] = []
        # The names of modules that are being loaded and will be reported.
        self.loading: set[str] = set()
        # The searches in progress, by thread and name: another finder may ask all finders in turn,
        # this one included.
        self._finding: set[tuple[int, str]] = set()

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if self.unfinished:
            self.report_finished()
        if name not in self.callbacks or (get_ident(), name) in self._finding:
            return None
        self._finding.add((get_ident(), name))
        try:
            spec = self._find_by_others(name, path, target)
        finally:
            self._finding.discard((get_ident(), name))
        if spec is not None and spec.loader is not None:
            spec.loader = _ReportingLoader(spec.loader, self)
        return spec

    def _find_by_others(self, name: str, path: Any, target: Any) -> ModuleSpec | None:
        for finder in list(sys.meta_path):
            if finder is not self:
                spec = finder.find_spec(name, path, target)
                if spec is not None:
                    return spec
        return None

    def report_finished(self) -> None:
        waiting, self.unfinished = self.unfinished, []
        for name, callback in waiting:
            module = sys.modules.get(name)
            # A module that is gone has failed: it is reported when it is imported again.
            if module is not None and _is_being_imported(module):
                self.unfinished.append((name, callback))
            elif module is not None:
                callback(module)


class _ReportingLoader(Loader):
    """Loads a module as *loader* does, and then reports it."""

    def __init__(self, loader: Any, finder: _Finder) -> None:
        self._loader = loader
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        created: ModuleType | None = self._loader.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        # The module's own code, and all later code, must see the original loader.
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._finder.loading.add(module.__name__)
        try:
            self._loader.exec_module(module)
            for callback in self._finder.callbacks[module.__name__]:
                callback(module)
        finally:
            self._finder.loading.discard(module.__name__)


# The first `after_import` adds it to Python's finders.
_finder = _Finder()
