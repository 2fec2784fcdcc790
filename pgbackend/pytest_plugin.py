"""A pytest plugin that runs the tests in the bridge: ``pgbackend_bridge = true``.

It is off unless the ini option ``pgbackend_bridge`` or the command line's ``--pgbackend`` says
otherwise; ``--no-pgbackend`` switches it off for one run. Where no database uses the bridge, it
does nothing. Switched on, the run is one bridged call on one event loop, as that of
`pgbackend.test.DiscoverRunner`, whose documentation holds here, too. With pytest-xdist each
worker process has a loop of its own.

With pytest-django, whose fixtures and marks are as ever, a test's database is one transaction
that is rolled back: fixtures, synchronous and asynchronous tests, Django's `TestCase` classes
and the requests of ``client`` and ``async_client`` see the same rows.

An ``async def`` test or fixture that no other plugin claims is awaited in the bridge, in the
task of the run, functions and methods alike: relations and other lazy access work in it.

pytest-asyncio and anyio keep what is theirs: what is marked for them, and in their automatic
modes every ``async def`` test. They run it on loops of their own, for which the run's loop
stands still.

- A test of pytest-asyncio is in the transaction of its ``db`` fixture all the same. Of its
  asynchronous fixtures are those that are set up after ``db``: with the mark ``django_db`` these
  are all of scope "function".
- anyio runs all that shares a loop in one task, which begins with the first asynchronous
  fixture. It is in the transaction if ``db`` was set up before: again, with the mark and if all
  its asynchronous fixtures are of scope "function".
- Coroutines there are not bridged: lazy access raises SynchronousOnlyOperation.
- What belongs to a loop (a client's sockets, a lock) can be used only by tests on that loop.

A project that wants its tests in the bridge therefore leaves pytest-asyncio in strict mode,
which is its default, and marks only what must have a loop of its own.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Generator
from typing import Any

import pytest

# The rest is imported where it is needed: pytest loads an installed plugin in every project, and
# before settings are configured.


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of this module's documentation."""
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
    """Register what runs the tests in the bridge, if that was asked for."""
    asked = config.getoption("pgbackend_bridge")
    if config.getini("pgbackend_bridge") if asked is None else asked:
        config.pluginmanager.register(BridgePlugin(), "pgbackend-bridge")


class BridgePlugin:
    """The hooks of a run in the bridge."""

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> object | None:
        """Run what would have run the tests (pytest, a worker of xdist) bridged."""
        manager = session.config.pluginmanager
        if manager.hasplugin("dsession"):
            # xdist's own process, which runs no tests.
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
        # Wrappers (reports, logging) are around this call already.
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
                # What a run that is cut short leaves set up: pytest would tear it down at the
                # session's end, after the loop's.
                session._setupstate.teardown_exact(None)

        with Runner() as bridge:
            return bridge.run(run)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self) -> Generator[None, object, object]:
        """Cancel the tasks that a test leaves, as the end of a loop of its own would."""
        from .testing.leftovers import no_tasks_left

        with no_tasks_left():
            return (yield)

    # After the plugins that claim a test, which are all tryfirst, and before pytest itself.
    @pytest.hookimpl
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> object | None:
        """Await an asynchronous test that nobody has claimed."""
        from .bridge.current import is_bridged

        if not inspect.iscoroutinefunction(pyfuncitem.obj) or not is_bridged():
            return None
        names = pyfuncitem._fixtureinfo.argnames
        _synchronous(pyfuncitem.obj)(**{name: pyfuncitem.funcargs[name] for name in names})
        return True

    # The innermost: plugins that claim an asynchronous fixture have made it a synchronous one.
    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_fixture_setup(
        self, fixturedef: Any, request: pytest.FixtureRequest
    ) -> Generator[None, object, object]:
        """Await an asynchronous fixture that nobody has claimed."""
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
            # It refuses to set a fixture up while any loop runs in the thread.
            with outside_loop():
                return (yield)
        if inspect.ismethod(function) and isinstance(request.instance, type(function.__self__)):
            # Of the test's own instance, as pytest does it with the function it finds.
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
    """Return *function* as Django's own test cases call theirs: in the bridge, in this task."""
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
