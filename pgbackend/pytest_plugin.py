"""A pytest plugin that runs the tests in the bridge: ``pgbackend_bridge = true``.

The plugin is off unless the ini option ``pgbackend_bridge`` or the command line's ``--pgbackend``
turns it on; ``--no-pgbackend`` switches it off for one run. If no database uses the bridge, the
plugin does nothing. Switched on, the run is one bridged call on one event loop, as with
`pgbackend.test.DiscoverRunner`, whose documentation applies here, too. With pytest-xdist each
worker process has a loop of its own.

The event loop of the run is in `runner`, and what it changes for tests in the room `testing`.

pytest-django's fixtures and marks work as always. A test's database access is one transaction that
is rolled back: fixtures, synchronous and asynchronous tests, Django's `TestCase` classes and the
requests of ``client`` and ``async_client`` see the same rows.

An ``async def`` test or fixture that no other plugin claims is awaited in the bridge, in the task
of the run, functions and methods alike: relations and other lazy access work in it.

pytest-asyncio and anyio keep their own tests: those that are marked for them and, in their
automatic modes, every ``async def`` test. They run these tests on loops of their own, while the
run's loop stands still.

- A test of pytest-asyncio is in the transaction of its ``db`` fixture all the same. Its
  asynchronous fixtures are in the transaction if they are set up after ``db``: with the mark
  ``django_db``, these are all fixtures of scope "function".
- anyio runs everything that shares a loop in one task, which begins with the first asynchronous
  fixture. That task is in the transaction if ``db`` was set up before: again, with the mark, and if
  all its asynchronous fixtures are of scope "function".
- Coroutines there are not bridged: lazy access raises SynchronousOnlyOperation.
- Objects that belong to a loop (a client's sockets, a lock) can be used only by tests on that loop.

A project that wants its tests in the bridge therefore leaves pytest-asyncio in strict mode, its
default, and marks only the tests that need a loop of their own.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Generator
from typing import Any

import pytest

# Other imports stand where they are needed: pytest loads an installed plugin in every project, and
# before settings are configured.


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that this module's documentation describes."""
    group = parser.getgroup("pgbackend")
    group.addoption(
        "--pgbackend",
        action="store_true",
        default=None,
        dest="pgbackend_bridge",
        help="Run the tests in the bridge of the database backend pgbackend, on one event loop.",
    )
    group.addoption(
        "--no-pgbackend",
        action="store_false",
        default=None,
        dest="pgbackend_bridge",
        help="Run them without, whatever pgbackend_bridge says.",
    )
    parser.addini(
        "pgbackend_bridge",
        "Run the tests in the bridge of the database backend pgbackend.",
        type="bool",
        default=False,
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the plugin that runs the tests in the bridge, if it was asked for."""
    asked = config.getoption("pgbackend_bridge")
    if config.getini("pgbackend_bridge") if asked is None else asked:
        config.pluginmanager.register(BridgePlugin(), "pgbackend-bridge")


class BridgePlugin:
    """The hooks of a run in the bridge."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> object | None:
        """Run bridged what would have run the tests: pytest, or a worker of xdist."""
        manager = session.config.pluginmanager
        if manager.hasplugin("dsession"):
            # This is xdist's own process, which runs no tests.
            return None
        from django.conf import settings

        if not settings.configured and not os.environ.get("DJANGO_SETTINGS_MODULE"):
            raise pytest.UsageError(
                "pgbackend_bridge is on, but Django's settings are not configured: set"
                " DJANGO_SETTINGS_MODULE, or switch it off by --no-pgbackend"
            )
        from .bridge.current import is_bridged
        from .runner import Runner
        from .test import uses_bridge

        if is_bridged() or not uses_bridge():
            return None
        # The wrappers (reports, logging) are already running around this call.
        wrappers = [
            hook.plugin
            for hook in session.config.hook.pytest_runtestloop.get_hookimpls()
            if hook.hookwrapper or hook.wrapper
        ]
        others = manager.subset_hook_caller("pytest_runtestloop", [self, *wrappers])

        def run() -> object:
            try:
                return others(session=session)
            finally:
                # Tear down what a run that is cut short leaves set up: pytest would do so at the
                # session's end, after the loop's end. `_setupstate` is pytest's private attribute.
                session._setupstate.teardown_exact(None)

        with Runner() as bridge:
            return bridge.run(run)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Generator[None, object, object]:
        """Cancel the tasks that a test leaves, as the end of a loop of its own would."""
        from .testing.leftovers import no_tasks_left

        with no_tasks_left():
            return (yield)

    # Runs after the plugins that claim a test, which are all tryfirst, and before pytest itself.
    @pytest.hookimpl
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> object | None:
        """Await an asynchronous test that no other plugin has claimed."""
        from .bridge.current import is_bridged

        if not inspect.iscoroutinefunction(pyfuncitem.obj) or not is_bridged():
            return None
        names = pyfuncitem._fixtureinfo.argnames
        _synchronous(pyfuncitem.obj)(**{name: pyfuncitem.funcargs[name] for name in names})
        return True

    # Runs innermost: plugins that claim an asynchronous fixture have made it synchronous by then.
    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_fixture_setup(
        self, fixturedef: Any, request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        """Await an asynchronous fixture that no other plugin has claimed."""
        from .bridge.current import is_bridged
        from .testing.loops import outside_loop

        function = fixturedef.func
        if not is_bridged():
            return (yield)
        if fixturedef.argname == "django_db_setup":
            from .test import renew_pools

            created = yield
            renew_pools()
            return created
        if function.__module__ == "anyio.pytest_plugin":
            # anyio refuses to set up a fixture while any loop runs in the thread.
            with outside_loop():
                return (yield)
        if inspect.ismethod(function) and isinstance(request.instance, type(function.__self__)):
            # Bind the method to the test's own instance, as pytest does.
            function = function.__func__.__get__(request.instance)
        if inspect.iscoroutinefunction(function):
            synchronous = _synchronous(function)
        elif inspect.isasyncgenfunction(function):
            synchronous = _synchronous_generator(function)
        else:
            return (yield)
        original, fixturedef.func = fixturedef.func, synchronous
        try:
            return (yield)
        finally:
            fixturedef.func = original


def _synchronous(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return *function* as Django's test cases call theirs: in the bridge, in this task."""
    from asgiref.sync import async_to_sync

    return async_to_sync(function)


def _synchronous_generator(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def generate(*args: Any, **kwargs: Any) -> Generator[Any, None, None]:
        values = function(*args, **kwargs)
        end = object()

        async def set_up() -> Any:
            return await anext(values, end)

        async def tear_down() -> None:
            if await anext(values, end) is not end:
                await values.aclose()
                pytest.fail(f"the asynchronous fixture {function.__qualname__} yields twice")

        value = _synchronous(set_up)()
        if value is not end:
            yield value
            _synchronous(tear_down)()

    return generate
