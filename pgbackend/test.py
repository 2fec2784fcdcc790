"""A project's tests in the bridge: ``TEST_RUNNER = "pgbackend.test.DiscoverRunner"``.

The whole run is one bridged call on one event loop: the test databases, ``setUpTestData``,
fixtures, synchronous and asynchronous tests, and the code they call. So all of a `TestCase` shares
one transaction, which is rolled back at its end; tasks started in a test join it. A worker process
of a parallel run has one loop for all its tests.

- An ``async def`` test is awaited in place, not on a loop of its own. Tasks that it leaves are
  cancelled at its end, as by `asyncio.run`.
- Synchronous test code may run a loop: ``asyncio.run()``, a management command that calls it,
  `unittest.IsolatedAsyncioTestCase`. That loop runs inside the test while the runner's loop stands
  still; its tasks join the test's transaction, too. In a coroutine ``asyncio.run()`` raises
  asyncio's RuntimeError, as always.
- Coverage.py needs a setting for greenlets: ``concurrency = ["greenlet", "thread"]``.

This module is for the setting alone. The event loop of the run is in `runner`, what it changes for
tests in the room `testing`, and the counterpart for pytest in `pytest_plugin`.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable
from multiprocessing.util import Finalize
from typing import Any

from django.db import connections
from django.db.backends.signals import connection_created
from django.test import runner
from django.test.signals import setting_changed

from .bridge.current import is_bridged
from .bridge.greenlets import await_bridged
from .pool.open_pools import open_pools
from .runner import Runner
from .wrapper.attributes import BackendWrapper


def uses_bridge() -> bool:
    """Return whether a database uses this backend with ``OPTIONS["bridge"]`` on."""
    return any(
        isinstance(wrapper, BackendWrapper) and wrapper.bridge_enabled
        for wrapper in connections.all()
    )


def renew_pools() -> None:
    """Close the pools in the bridge, so that new connections are made.

    A migration adds things such as the type of an extension only to its own connection;
    ``connection_created`` adds them to connections that are made afterwards.
    """
    if is_bridged():
        for pool in open_pools():
            await_bridged(pool.close())


# The receivers of connection_created at the last change of the applications that renewed pools, and
# for each change that has not ended whether it did.
_receivers: frozenset[Any] | None = None
_renewed: list[bool] = []


def _setting_changed(*, setting: str, enter: bool, **kwargs: Any) -> None:
    """Renew the pools if receivers of connection_created have come or gone with the applications.

    ``available_apps`` of a test changes the applications and no receivers.
    """
    global _receivers
    if setting != "INSTALLED_APPS":
        return
    found = frozenset(key for key, *_ in connection_created.receivers)
    if enter:
        renew = found != _receivers
        _renewed.append(renew)
    else:
        # What came with the applications may be about to go.
        renew = not _renewed or _renewed.pop()
    if renew:
        _receivers = found
        renew_pools()


setting_changed.connect(_setting_changed)


# The runner of a worker process.
_worker: Runner | None = None


def init_worker(*args: Any, **kwargs: Any) -> None:
    """Prepare a worker process as Django does, on the loop that its tests will run on."""
    global _worker
    _worker = Runner()
    Finalize(None, _worker.close, exitpriority=0)
    _worker.run(runner._init_worker, *args, **kwargs)


def run_subsuite(args: tuple[Any, ...]) -> Any:
    """Run a part of the tests in a worker process, as Django does, but bridged."""
    assert _worker is not None
    return _worker.run(runner._run_subsuite, args)


class ParallelTestSuite(runner.ParallelTestSuite):
    """Django's suite, whose worker processes, forked or spawned, run their tests bridged."""

    init_worker = init_worker
    run_subsuite = run_subsuite


class DiscoverRunner(runner.DiscoverRunner):
    """Django's test runner, with all of `run_tests` bridged on one event loop.

    With ``--no-bridge`` (``bridge=False``), or if no database uses the bridge, it only does what
    Django's runner does. Source:
    https://docs.djangoproject.com/en/stable/topics/testing/advanced/#using-different-testing-frameworks
    """

    parallel_test_suite = ParallelTestSuite

    def __init__(self, *args: Any, bridge: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.bridge = bridge

    @classmethod
    def add_arguments(cls, parser: ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--no-bridge",
            action="store_false",
            dest="bridge",
            help="Run the tests as Django's own runner does, without an event loop around them.",
        )

    def setup_databases(self, **kwargs: Any) -> Any:
        """Create the test databases."""
        created = super().setup_databases(**kwargs)
        renew_pools()
        return created

    def run_tests(self, test_labels: Any, **kwargs: Any) -> int:
        """Run the tests and return how many failed.

        Raise RuntimeError if an event loop runs in this thread and the caller is not bridged.
        """
        run: Callable[..., int] = super().run_tests
        if is_bridged():
            return run(test_labels, **kwargs)
        if not (self.bridge and uses_bridge()):
            if self.parallel_test_suite is ParallelTestSuite:
                self.parallel_test_suite = runner.ParallelTestSuite
            return run(test_labels, **kwargs)
        with Runner() as bridge:
            return bridge.run(run, test_labels, **kwargs)
