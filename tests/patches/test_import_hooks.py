"""Calling back when a module is imported, also where that does not go smoothly."""

import sys
import textwrap
from collections.abc import Iterator
from importlib import import_module, reload
from pathlib import Path
from types import ModuleType

import pytest

from pgbackend.patches.import_hooks import after_import, report_finished
from tests.support.script import run_script

NAME = "tests_imported"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of modules, forgotten at the end."""
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [each for each in sys.modules if each.startswith(NAME)]:
        del sys.modules[name]


def write(folder: Path, name: str, source: str) -> None:
    (folder / f"{name}.py").write_text(textwrap.dedent(source))


def test_reported_when_imported(folder: Path) -> None:
    """A module is reported once, complete, and as if nobody had looked at its import."""
    seen: list[ModuleType] = []
    write(folder, f"{NAME}_a", "value = 1")
    after_import(f"{NAME}_a", lambda module: seen.append(module.value))
    module = import_module(f"{NAME}_a")
    import_module(f"{NAME}_a")
    assert seen == [1]
    assert module.__spec__ is not None
    assert module.__loader__ is module.__spec__.loader
    assert type(module.__loader__).__module__ == "_frozen_importlib_external"


def test_several_callbacks(folder: Path) -> None:
    """All callbacks of a module are called, in the order in which they came."""
    seen: list[int] = []
    write(folder, f"{NAME}_several", "")
    for number in range(3):
        after_import(f"{NAME}_several", lambda module, number=number: seen.append(number))
    import_module(f"{NAME}_several")
    assert seen == [0, 1, 2]


def test_import_that_fails_first(folder: Path) -> None:
    """A module whose import fails is reported when it is imported again, and works."""
    seen: list[str] = []
    write(
        folder,
        f"{NAME}_failing",
        f"""
        import sys
        if not hasattr(sys, "{NAME}_ready"):
            raise LookupError("not yet")
        """,
    )
    after_import(f"{NAME}_failing", lambda module: seen.append(module.__name__))
    for _ in range(2):
        with pytest.raises(LookupError, match="not yet"):
            import_module(f"{NAME}_failing")
    assert seen == []
    setattr(sys, f"{NAME}_ready", True)
    try:
        import_module(f"{NAME}_failing")
    finally:
        delattr(sys, f"{NAME}_ready")
    assert seen == [f"{NAME}_failing"]


def test_imported_anew(folder: Path) -> None:
    """A module that is reloaded, or forgotten and imported again, is reported again."""
    seen: list[ModuleType] = []
    write(folder, f"{NAME}_anew", "")
    after_import(f"{NAME}_anew", seen.append)
    module = import_module(f"{NAME}_anew")
    reload(module)
    del sys.modules[f"{NAME}_anew"]
    second = import_module(f"{NAME}_anew")
    assert second is not module
    assert seen == [module, module, second]


def test_in_the_middle_of_its_import(folder: Path) -> None:
    """A module that is being imported is reported when that has ended, not before."""
    seen: list[bool] = []
    write(
        folder,
        f"{NAME}_half",
        f"""
        from pgbackend.patches.import_hooks import after_import
        after_import("{NAME}_half", lambda module: module.seen.append(hasattr(module, "late")))
        seen = []
        import {NAME}_other
        assert seen == []
        late = True
        """,
    )
    write(folder, f"{NAME}_other", "")
    seen = import_module(f"{NAME}_half").seen
    report_finished()
    report_finished()
    assert seen == [True]


def test_any_later_import_reports(folder: Path) -> None:
    """What was in the middle of its import is reported before the next module is searched."""
    write(
        folder,
        f"{NAME}_unfinished",
        f"""
        from pgbackend.patches.import_hooks import after_import
        seen = []
        after_import("{NAME}_unfinished", seen.append)
        """,
    )
    write(
        folder, f"{NAME}_next", f"import {NAME}_unfinished; assert len({NAME}_unfinished.seen) == 1"
    )
    import_module(f"{NAME}_unfinished")
    import_module(f"{NAME}_next")


def test_import_that_fails_in_the_middle(folder: Path) -> None:
    """A module that asked for itself and then failed is reported with its next import only."""
    write(
        folder,
        f"{NAME}_broken",
        f"""
        import sys
        from pgbackend.patches.import_hooks import after_import
        seen = sys.modules["{__name__}"].BROKEN
        if not seen:
            seen.append("asked")
            after_import("{NAME}_broken", lambda module: seen.append(module.complete))
            raise LookupError
        complete = True
        """,
    )
    BROKEN.clear()
    with pytest.raises(LookupError):
        import_module(f"{NAME}_broken")
    report_finished()
    assert BROKEN == ["asked"]
    import_module(f"{NAME}_broken")
    report_finished()
    assert BROKEN == ["asked", True]


BROKEN: list[object] = []


class Nosy:
    """A finder that asks all finders in its turn, as those of instrumentations do."""

    def __init__(self) -> None:
        self.asking = False

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        if self.asking or not name.startswith(NAME):
            return None
        self.asking = True
        try:
            from importlib.util import find_spec

            return find_spec(name)
        finally:
            self.asking = False


@pytest.mark.parametrize("place", [0, 1])
def test_beside_another_finder(folder: Path, monkeypatch: pytest.MonkeyPatch, place: int) -> None:
    """Beside a finder that asks all others, before or after ours, a module is reported once."""
    seen: list[ModuleType] = []
    write(folder, f"{NAME}_nosy{place}", "")
    after_import(f"{NAME}_nosy{place}", seen.append)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path[:place], Nosy(), *sys.meta_path[place:]])
    assert seen == [import_module(f"{NAME}_nosy{place}")]


def test_module_that_is_not_there() -> None:
    """A module that is nowhere to be found is ModuleNotFoundError as ever."""
    after_import(f"{NAME}_missing", print)
    with pytest.raises(ModuleNotFoundError, match=f"{NAME}_missing"):
        import_module(f"{NAME}_missing")


FAILS_FIRST = """
    settings.configure(**conf)
    import importlib
    import django
    import pgbackend.base
    from pgbackend import fingerprints
    from pgbackend.patches import where_to_run
    early = [name for name in where_to_run.RULES if name not in sys.modules]
    failed = []
    for name in early:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            assert name.startswith("django.tasks."), name
        except Exception as error:
            failed.append(name)
    assert "django.contrib.auth.backends" in failed, failed
    django.setup()
    for name in failed:
        module = importlib.import_module(name)
        assert module.sync_to_async.__module__ == "pgbackend.patches.a_methods", name
    assert fingerprints.unpatched == []
    print("patched")
    """


@pytest.mark.process
def test_djangos_module_whose_first_import_fails() -> None:
    """A module of Django's that was imported before the applications, in vain, is patched later."""
    assert run_script(FAILS_FIRST) == "patched\n"


def test_asked_for_while_it_is_loaded(folder: Path) -> None:
    """A callback that comes while its module is being loaded for another one is called once."""
    seen: list[str] = []
    write(
        folder,
        f"{NAME}_asking",
        f"""
        from pgbackend.patches.import_hooks import after_import
        seen = []
        after_import("{NAME}_asking", lambda module: seen.append("second"))
        """,
    )
    after_import(f"{NAME}_asking", lambda module: module.seen.append("first"))
    seen = import_module(f"{NAME}_asking").seen
    report_finished()
    assert seen == ["first", "second"]
