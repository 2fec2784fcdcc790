"""The package: importing it changes nothing and needs nothing; what patches Django says so."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import pgbackend

ROOT = Path(__file__).parents[1]

# What neither an import of the package nor an installed plugin may bring along.
HEAVY = ("asgiref", "django", "greenlet", "psycopg", "psycopg_pool")

NAMES = sorted(pgbackend.__all__)
MODULES = ("asgi", "base", "detector", "errors", "test", "transaction")


def run(source: str, *arguments: str) -> str:
    """Run *source* in a new interpreter, without settings, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(source), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "DJANGO_SETTINGS_MODULE": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


@pytest.mark.process
def test_import_brings_nothing_along() -> None:
    """``import pgbackend`` imports no Django, no psycopg, and nothing but what finds its names."""
    printed = run(
        """
        import sys
        import pgbackend
        dir(pgbackend), pgbackend.__all__, pgbackend.__doc__
        print(*sorted(name for name in sys.modules if name.startswith("pgbackend")))
        print(*sorted(set(sys.argv[1:]) & set(sys.modules)))
        """,
        *HEAVY,
    )
    assert printed.splitlines() == ["pgbackend pgbackend.lazy", ""]


# What would differ if Django were patched; asked after each of the uses in `USES`.
WATCHED = """
    import asyncio
    import sys
    import asgiref.sync
    from django.db import transaction
    from django.core import checks
    call = asgiref.sync.AsyncToSync.__call__
    # Not by the name "to_thread", which would be replaced in this module, too.
    in_thread, finders = asyncio.to_thread, list(sys.meta_path)
    registry = checks.registry.registry
    names = {}

    def look(use):
        exec(use, names)
        found = (
            hasattr(transaction.Atomic, "__aenter__"),
            asgiref.sync.AsyncToSync.__call__ is not call,
            asyncio.to_thread is not in_thread,
            sys.meta_path != finders,
            any(each.__module__.startswith("pgbackend") for each in registry.get_checks()),
        )
        print(*sorted(set(found)), use, sep=": ")
"""


def looked_at(*uses: str) -> list[str]:
    """Return each use with whether it patches, one after the other in one interpreter."""
    calls = "".join(f"    look({use!r})\n" for use in uses)
    return run(WATCHED + calls).splitlines()


@pytest.mark.process
def test_public_names() -> None:
    """Each public name is there when it is asked for, and that patches nothing."""
    uses = [f"import pgbackend; pgbackend.{name}" for name in NAMES]
    uses += [f"from pgbackend import {name}" for name in NAMES]
    assert looked_at(*uses) == [f"False: {use}" for use in uses]
    assert set(NAMES) <= set(dir(pgbackend))


@pytest.mark.process
def test_public_modules() -> None:
    """Each public module is there as an attribute; the backend alone patches."""
    assert set(MODULES) <= set(dir(pgbackend))
    uses = [
        "import pgbackend",
        *(f"pgbackend.{name}.__doc__" for name in MODULES if name != "base"),
    ]
    found = looked_at(*uses, "pgbackend.base")
    assert found == [*(f"False: {use}" for use in uses), "True: pgbackend.base"]


DOORS = ("client", "compiler", "creation", "features", "introspection", "operations", "schema")


@pytest.mark.process
@pytest.mark.parametrize("name", DOORS)
def test_door(name: str) -> None:
    """Each module with a name of Django's can be the first that is imported."""
    assert run(f"import pgbackend.{name}") == ""


@pytest.mark.process
def test_doors() -> None:
    """Importing modules with names of Django's patches nothing."""
    uses = [f"import pgbackend.{name}" for name in DOORS]
    assert looked_at(*uses) == [f"False: {use}" for use in uses]


@pytest.mark.process
def test_application_patches() -> None:
    """The application "pgbackend" loads the backend, and so does its first database wrapper."""
    assert looked_at("import pgbackend.apps") == ["True: import pgbackend.apps"]
    use = (
        "from django.conf import settings; from django.db import connection;"
        " settings.configure(DATABASES={'default': {'ENGINE': 'pgbackend'}}); connection.vendor"
    )
    assert looked_at(use) == [f"True: {use}"]


def test_unknown_name() -> None:
    """A name that there is none of is an AttributeError, or an ImportError, that names it."""
    with pytest.raises(AttributeError, match="'pgbackend' has no attribute 'bridge_it'"):
        _ = pgbackend.bridge_it  # type: ignore[attr-defined]
    with pytest.raises(ImportError, match="bridge_it"):
        exec("from pgbackend import bridge_it")


def test_star() -> None:
    """``from pgbackend import *`` gives the public names."""
    names: dict[str, object] = {}
    exec("from pgbackend import *", names)
    assert set(pgbackend.__all__) <= names.keys()


PLUGIN = """
    import sys

    def test_modules():
        assert "pgbackend.pytest_plugin" in sys.modules
        print("modules", sorted({heavy!r} & sys.modules.keys()))
        print("package", sorted(name for name in sys.modules if name.startswith("pgbackend")))
"""


@pytest.mark.process
@pytest.mark.parametrize("options", [[], ["--no-pgbackend"]])
def test_installed_plugin(tmp_path: Path, options: list[str]) -> None:
    """Where the package is merely installed, pytest's run imports no Django and no psycopg."""
    heavy = set(HEAVY)
    (tmp_path / "test_it.py").write_text(textwrap.dedent(PLUGIN.format(heavy=heavy)))
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-s", "-p", "pgbackend.pytest_plugin"),
            # Others that are installed may import what they like.
            *options,
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "modules []" in done.stdout
    assert "package ['pgbackend', 'pgbackend.lazy', 'pgbackend.pytest_plugin']" in done.stdout


@pytest.mark.process
def test_plugin_of_another_backend(tmp_path: Path) -> None:
    """Switched on in a project of another engine, the plugin patches nothing."""
    (tmp_path / "settings.py").write_text(
        "DATABASES = {'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': ':memory:'}}\n"
    )
    (tmp_path / "test_it.py").write_text(
        textwrap.dedent(
            """
            import asgiref.sync
            from django.db import connection, transaction

            def test_nothing_is_patched():
                assert connection.vendor == "sqlite"
                assert not hasattr(transaction.Atomic, "__aenter__")
                assert asgiref.sync.AsyncToSync.__call__.__module__ == "asgiref.sync"
            """
        )
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\npgbackend_bridge = true\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "pgbackend.pytest_plugin"],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "DJANGO_SETTINGS_MODULE": "settings",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_names_of_public_modules() -> None:
    """What is imported by name from the modules that are public is what the rooms hold."""
    from pgbackend.bridge import await_bridged, greenlets, is_bridged, run_bridged
    from pgbackend.bridge import current as of_bridge
    from pgbackend.connection import BridgedConnection
    from pgbackend.pool import face, open_pools
    from pgbackend.registry import open_pools as opened

    assert (await_bridged, run_bridged) == (greenlets.await_bridged, greenlets.run_bridged)
    assert is_bridged is of_bridge.is_bridged
    assert BridgedConnection is face.BridgedConnection
    assert opened is open_pools.open_pools
