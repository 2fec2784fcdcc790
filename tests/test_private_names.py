"""The private names of other packages: the page has them all, and they are as it says.

The page is docs/reference/private-parts.md; its tables are read here.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import pkgutil
import re
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import ContextDecorator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakSet

import django
import psycopg
import psycopg_pool
import pytest
from asgiref.sync import ThreadSensitiveContext, async_to_sync, sync_to_async
from django.apps import apps
from django.core.handlers.base import BaseHandler
from django.core.signals import request_finished
from django.db import connections, transaction
from django.db.models.sql import Query
from django.http import HttpResponse, StreamingHttpResponse
from psycopg_pool.base import AttemptWithBackoff
from psycopg_pool.pool_async import WaitingClient

import pgbackend
from pgbackend import fingerprints
from pgbackend.patches import where_to_run
from pgbackend.session import guard
from tests.models import Author
from tests.support.script import ROOT, run_script

PACKAGE = Path(pgbackend.__file__).parent
PAGE = ROOT / "docs" / "reference" / "private-parts.md"

_ROW = re.compile(r"^\| `([\w.]+):([\w.]+)(?:\(([\w, ]*)\))?` \| (.+?) \| (.+?) \| (.+?) \|$", re.M)


class Private(NamedTuple):
    """A row of the page."""

    module: str
    # With what has it, if that is not the module.
    path: str
    # None where they do not matter.
    parameters: list[str] | None
    kind: str
    why: str
    # The files of the package that use it.
    files: frozenset[str]

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def owner(self) -> str:
        return self.path.rpartition(".")[0]


def rows() -> Iterator[Private]:
    for row in _ROW.finditer(PAGE.read_text()):
        module, path, parameters, kind, why, files = row.groups()
        taken = None if parameters is None else re.findall(r"\w+", parameters)
        yield Private(module, path, taken, kind, why, frozenset(re.findall(r"`([^`]+)`", files)))


NAMES = list(rows())


@pytest.fixture(autouse=True)
def clean() -> None:
    """Clean nothing: none of these tests uses the server."""


each_name = pytest.mark.parametrize("each", NAMES, ids=[f"{x.module}:{x.path}" for x in NAMES])


async def _nothing() -> None:
    """Do nothing."""


def _in_loop(make: Callable[[], Any]) -> Any:
    async def run() -> Any:
        return make()

    return asyncio.run(run())


# An instance of each class whose attributes are looked at, where the class does not have them.
EXAMPLES: dict[str, Callable[[], Any]] = {
    "AsyncConnectionPool": lambda: psycopg_pool.AsyncConnectionPool(open=False),
    "AttemptWithBackoff": lambda: AttemptWithBackoff(timeout=0.0),
    "WaitingClient": lambda: _in_loop(WaitingClient),
    "BaseConnection": lambda: psycopg.Connection(psycopg.pq.PGconn()),
    "ClientCursor": lambda: psycopg.ClientCursor(psycopg.Connection(psycopg.pq.PGconn())),
    "AdaptersMap": lambda: psycopg.adapters,
    "TypesRegistry": lambda: psycopg.adapters.types,
    "Atomic": lambda: transaction.atomic(),
    "AsyncToSync": lambda: async_to_sync(_nothing),
    "SyncToAsync": lambda: sync_to_async(len),
    "ThreadSensitiveContext": ThreadSensitiveContext,
    "BaseHandler": BaseHandler,
    "BaseEventLoop": lambda: _in_loop(asyncio.get_running_loop),
    "Future": lambda: _in_loop(lambda: asyncio.get_running_loop().create_future()),
    "HttpResponse": HttpResponse,
    "Model": lambda: Author(),
    "ModuleSpec": lambda: pgbackend.__spec__,
    "Query": lambda: Query(None),
    "ServerCursor": lambda: psycopg.ServerCursor(psycopg.Connection(psycopg.pq.PGconn()), "name"),
    "QuerySet": lambda: Author.objects.all(),
    "StreamingHttpResponse": StreamingHttpResponse,
    "connections": lambda: connections,
}

# What is set later than an instance is made, on it or by others, with the code that does it.
_SET_BY: dict[str, Any] = {
    "AsyncConnectionPool._lock": psycopg_pool.AsyncConnectionPool,
    "BaseConnection._created_at": psycopg_pool.base.BasePool,
    "BaseConnection._expire_at": psycopg_pool.base.BasePool,
    "BaseConnection._pool": psycopg_pool.AsyncConnectionPool,
}

# Packages whose modules need a project of their own: only their text is looked at.
_OPTIONAL = ("debug_toolbar", "pghistory")


def found(each: Private) -> Any:
    """Return what a row names: from its class, or from an instance of that."""
    owner = owner_of(each)
    try:
        return getattr(owner, each.name)
    except AttributeError:
        return getattr(EXAMPLES[each.owner](), each.name)


def owner_of(each: Private) -> Any:
    owner: Any = import_module(each.module)
    for name in filter(None, each.owner.split(".")):
        owner = getattr(owner, name)
    return owner


def names_in(code: types.CodeType) -> set[str]:
    """Return all names in a function's code, and in that of the functions inside it."""
    names = {*code.co_names, *code.co_varnames, *code.co_freevars, *code.co_cellvars}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= names_in(constant)
    return names


@each_name
def test_name(each: Private, request: pytest.FixtureRequest) -> None:
    """The name is there, is what the page says, and takes these parameters."""
    kind = each.kind.removesuffix(", replaced").removesuffix(", overridden")
    if (since := re.fullmatch(r"(.+), from (Python|Django) (\d+)\.(\d+)", kind)) is not None:
        kind = since[1]
        version = sys.version_info if since[2] == "Python" else django.VERSION
        if version[:2] < (int(since[3]), int(since[4])):
            pytest.skip(f"not in this {since[2]}")
    package = pytest.importorskip(each.module.partition(".")[0])
    if package.__name__ in _OPTIONAL:
        texts = (path.read_text() for path in Path(package.__file__).parent.rglob("*.py"))
        assert any(each.name in text for text in texts)
    elif each.path in _SET_BY:
        assert re.search(rf"\.{each.name}\b.* = ", inspect.getsource(_SET_BY[each.path]))
    elif package is pytest:
        assert hasattr(
            {"Function": request.node, "Session": request.session}[each.owner], each.name
        )
    elif kind == "name inside":
        assert each.name in names_in(inspect.unwrap(owner_of(each)).__code__)
    else:
        check_kind(inspect.unwrap(found(each)), kind, each)


def check_kind(value: Any, kind: str, each: Private) -> None:
    """Assert that *value* is of a *kind* of the page's, and has the parameters of its row."""
    if kind == "attribute":
        assert not isinstance(inspect.getattr_static(owner_of(each), each.name, None), _FUNCTIONS)
        return
    if kind == "module":
        assert inspect.ismodule(value)
        return
    assert inspect.isclass(value) == (kind == "class" and each.kind != "class, replaced")
    assert inspect.iscoroutinefunction(value) == (kind == "coroutine function")
    assert inspect.isgeneratorfunction(value) == (kind == "generator function")
    assert callable(value)
    if each.parameters is not None:
        assert list(inspect.signature(value).parameters) == each.parameters


_FUNCTIONS = (types.FunctionType, classmethod, staticmethod)


# The package's own names

# The package's modules, by their files.
MODULES = [path.relative_to(PACKAGE).as_posix() for path in sorted(PACKAGE.rglob("*.py"))]


# Parsed by the tests, not at import: each process of a run imports this module, and one tests it.
@cache
def parsed(file: str) -> ast.Module:
    """Return the package's module in this file, parsed."""
    return ast.parse((PACKAGE / file).read_text())


# Modules that their packages do not document, beside those with an underscore in their names.
_UNDOCUMENTED = frozenset(
    {
        "asgiref.current_thread_executor",
        "psycopg.client_cursor",
        "psycopg.generators",
        "psycopg.waiting",
        "psycopg_pool.base",
        "psycopg_pool.pool_async",
    }
)

# What has no documented attributes, by its name in the package.
_OPAQUE = frozenset({"AsyncToSync", "SyncToAsync", "ThreadSensitiveContext", "generators"})

# Attributes of ours on the objects of others, and the name of a module of CPython's.
_OURS = re.compile(r"_pgbackend\w*|_asyncio")


def is_private(name: str) -> bool:
    """Return whether *name* begins with an underscore, and is none of Python's own.

    Those are ``_``, ``__special__``, and ``_names_`` of enumerations.
    """
    return name.startswith("_") and not name.startswith("__") and not name.endswith("_")


@cache
def own_names() -> set[str]:
    """Return the private names that the package defines, in modules and in classes."""
    own: set[str] = set()
    for file in MODULES:
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                own.add(node.name)
            elif (
                isinstance(node, ast.Attribute)
                and isinstance(node.ctx, ast.Store)
                and ast.unparse(node.value) == "self"
            ):
                own.add(node.attr)
            if isinstance(node, ast.ClassDef | ast.Module):
                for statement in node.body:
                    own |= _assigned(statement)
    return own


def _assigned(statement: ast.stmt) -> set[str]:
    if not isinstance(statement, ast.Assign | ast.AnnAssign):
        return set()
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    names = {
        node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name)
    }
    if "__slots__" in names and statement.value is not None:
        names |= set(ast.literal_eval(statement.value))
    return names


def private_names(module: ast.Module) -> Iterator[str]:
    """Yield the private names in a module, whoever's they are."""
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute):
            opaque = isinstance(node.value, ast.Name) and node.value.id in _OPAQUE
            if is_private(node.attr) or (opaque and not node.attr.startswith("__")):
                yield node.attr
        elif isinstance(node, ast.Import | ast.ImportFrom):
            if isinstance(node, ast.ImportFrom) and node.level:
                continue
            within = getattr(node, "module", None) or ""
            for alias in node.names:
                path = f"{within}.{alias.name}"
                if within in _UNDOCUMENTED or any(map(is_private, path.split("."))):
                    yield alias.name
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node.value.isidentifier()
            and is_private(node.value)
        ):
            # An argument of getattr() or its like, or in a table of such.
            yield node.value


@cache
def all_names(file: str) -> set[str]:
    """Return the names in a module that may stand for one of another package's."""
    names: set[str] = set()
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.alias):
            names.add(node.name)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)
    return names


@pytest.mark.parametrize("file", MODULES)
def test_all_names_are_listed(file: str) -> None:
    """Each private name in the module is on the page with this file, or the package's own."""
    listed = {each.name for each in NAMES if file in each.files}
    foreign = set(private_names(parsed(file))) - own_names()
    assert {name for name in foreign if not _OURS.fullmatch(name)} <= listed


@each_name
def test_name_is_used(each: Private) -> None:
    """The files that the page names for it have the name."""
    assert each.files
    for file in each.files:
        assert each.name in all_names(file), file


NEED_REDIS = {
    f"pgbackend.rpc.transports.{name}"
    for name in (
        "amqp_answers",
        "celery",
        "celery_service",
        "celery_worker",
        "redis_answers",
        "results",
    )
}


def own_classes() -> set[type]:
    """Return the package's classes, and a guarded one of psycopg's cursors."""
    cursor = guard.guard(EXAMPLES["ClientCursor"]())
    classes = {type(cursor)}
    for module in pkgutil.walk_packages(pgbackend.__path__, "pgbackend."):
        if module.name.startswith("pgbackend.pubsub.") and not apps.is_installed("pgtrigger"):
            # An environment without the extra "pubsub".
            continue
        if module.name.startswith("pgbackend.pubsub.task") and django.VERSION < (6, 0):
            continue
        if module.name == "pgbackend.rpc.celery":
            # It makes the application of a service, for which the settings have to name a broker.
            continue
        if module.name in NEED_REDIS and find_spec("redis") is None:
            # An environment without the extra "rpc".
            continue
        if module.name.endswith(".admin"):
            # It needs the application "admin", which the tests' settings have not.
            continue
        classes |= {
            value
            for value in vars(import_module(module.name)).values()
            if isinstance(value, type) and value.__module__.startswith("pgbackend.")
        }
    return classes


def overridden() -> Iterator[tuple[type, type, str]]:
    """Yield our class, another package's base of it, and the private method that both have."""
    for cls in sorted(own_classes(), key=lambda cls: cls.__qualname__):
        ours = [each for each in cls.__mro__ if each.__module__.startswith("pgbackend.")]
        theirs = [each for each in cls.__mro__[1:] if not each.__module__.startswith("pgbackend.")]
        for name in sorted({name for each in ours for name in vars(each) if is_private(name)}):
            for base in theirs:
                if isinstance(inspect.getattr_static(base, name, None), types.FunctionType):
                    yield cls, base, name
                    break


def test_overridden_methods() -> None:
    """What overrides a private method is on the page, and takes what the method takes."""
    listed = {each.name for each in NAMES if each.kind.endswith(", overridden")}
    for cls, base, name in overridden():
        assert name in listed, (cls, name)
        ours = inspect.signature(getattr(cls, name)).parameters.values()
        theirs = inspect.signature(getattr(base, name)).parameters
        kinds = {each.kind for each in ours}
        if not {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL} & kinds:
            assert [each.name for each in ours][: len(theirs)] == list(theirs), (cls, name)
    assert {name for *_, name in overridden()} <= listed


# What is replaced


@pytest.mark.process
def test_replaced_functions() -> None:
    """What a loaded backend has replaced is on the page, and known by its fingerprint."""
    printed = run_script(
        """
        settings.configure(**conf)
        import inspect
        import django
        from importlib import import_module

        PACKAGES = ("asgiref", "asyncio", "contextlib", "django", "logging")

        def parts():
            for name, module in list(sys.modules.items()):
                if name.partition(".")[0] not in PACKAGES:
                    continue
                for key, value in list(vars(module).items()):
                    if inspect.isclass(value) and value.__module__ == name:
                        for attribute, content in list(vars(value).items()):
                            yield f"{name}:{key}.{attribute}", content
                    elif not key.startswith("__"):
                        yield f"{name}:{key}", value

        MODULES = (
            "django.core.handlers.asgi django.test.client django.urls.resolvers django.utils.log"
            " django.db.models.query django.db.transaction django.core.paginator"
            " django.core.handlers.exception django.contrib.sessions.backends.db"
        ).split()
        # As an application would import them, but without the backend.
        settings.DATABASES = {}
        django.setup()
        for name in MODULES:
            import_module(name)
        before = dict(parts())
        import pgbackend.base
        for name, value in parts():
            if name in before and before[name] is not value and callable(value):
                print(name, hasattr(before[name], "__wrapped__"))
            elif name not in before and name.startswith("django.db.transaction:Atomic."):
                print(name, False)
        """
    )
    listed = {f"{x.module}:{x.path}" for x in NAMES if x.kind.endswith(", replaced")}
    replaced = set()
    for line in printed.splitlines():
        place, guarded = line.split()
        module, _, path = place.partition(":")
        if path == "sync_to_async":
            assert module in where_to_run.RULES, place
        elif path == "to_thread" or (guarded == "True" and ".backends." in module):
            # Copies of one name; and what Django marks by async_unsafe.
            pass
        else:
            replaced.add(place)
    assert replaced
    known = {*fingerprints.KNOWN, *fingerprints.RELIED_ON}
    added = {"django.db.transaction:Atomic.__aenter__", "django.db.transaction:Atomic.__aexit__"}
    assert replaced - listed == added
    for place in replaced - added:
        if place.startswith(("django", "asgiref")) and place not in _KNOWN_BY_OTHERS:
            assert place.replace(":", ".") in known, place


# Replaced names that are known by another source than their own.
_KNOWN_BY_OTHERS = {
    "asgiref.sync:CurrentThreadExecutor",  # asgiref.current_thread_executor
    "django.db.transaction:Atomic.__call__",  # contextlib, below
    "django.db.transaction:Atomic._recreate_cm",  # contextlib
    "django.db.utils:ConnectionRouter.db_for_read",  # ConnectionRouter._router_func
    "django.db.utils:ConnectionRouter.db_for_write",  # ConnectionRouter._router_func
    "django.utils.asyncio:get_running_loop",  # async_unsafe
    "django.utils.log:AdminEmailHandler.handle",  # AdminEmailHandler.emit
}


# Functions of CPython's that are replaced, or whose inside is read. The package does not ask which
# they are: an unknown one fails here.
_OF_PYTHON = {
    "asyncio.threads:to_thread": {"2edaba6864b4"},  # 3.11 to 3.13
    "contextlib:ContextDecorator.__call__": {"b7183b944f4f"},  # 3.11 to 3.13
    "contextlib:ContextDecorator._recreate_cm": {"60cfb7f9b2a7"},  # 3.11 to 3.13
    "contextlib:_AsyncGeneratorContextManager.__aenter__": {"39134058447e"},  # 3.11 to 3.13
    "contextlib:_GeneratorContextManager.__enter__": {"ef2e5d8a9a30"},  # 3.11 to 3.13
    "logging:Handler.handle": {"36d25d432e14", "fd851fc19461", "865f2969a33a"},  # 3.11, 3.12, 3.13
}


@pytest.mark.parametrize("place", _OF_PYTHON)
def test_functions_of_python(place: str) -> None:
    """The function is that of a known version of CPython."""
    module = import_module(place.partition(":")[0])
    function = fingerprints.find(place.replace(":", "."), module)
    assert fingerprints.fingerprint(function) in _OF_PYTHON[place]


# How some of them look inside


def test_callbacks_of_a_future() -> None:
    """The callbacks of a future are pairs, with their contexts; None if there are none."""

    async def main() -> None:
        future: Any = asyncio.get_running_loop().create_future()
        assert not future._callbacks
        future.add_done_callback(len)
        ((callback, context),) = future._callbacks
        assert callback is len
        context.run(int)
        future.remove_done_callback(len)

    asyncio.run(main())


def test_generators_of_a_loop() -> None:
    """A loop of asyncio's keeps its asynchronous generators in a WeakSet."""

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        assert isinstance(loop._asyncgens, WeakSet)

    asyncio.run(main())


def test_live_receivers() -> None:
    """A signal's receivers come as two lists, the synchronous ones first."""
    synchronous, asynchronous = request_finished._live_receivers(object)
    assert isinstance(synchronous, list)
    assert isinstance(asynchronous, list)


def test_decorated_function() -> None:
    """What a ContextDecorator makes of a function is a closure over itself and the function."""

    class Block(ContextDecorator):
        def __enter__(self) -> None: ...

        def __exit__(self, *exc_info: object) -> None: ...

    block = Block()
    decorated: Any = block(len)
    cells = dict(zip(decorated.__code__.co_freevars, decorated.__closure__, strict=True))
    assert {name: cell.cell_contents for name, cell in cells.items()} == {
        "self": block,
        "func": len,
    }
