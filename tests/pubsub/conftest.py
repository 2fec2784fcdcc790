"""Tests of pgbackend.pubsub: they need django-pgtrigger, which is in the extra "dev"."""

import importlib.util

import pytest

if importlib.util.find_spec("pgtrigger") is None:
    collect_ignore_glob = ["*"]


@pytest.fixture(autouse=True)
def no_calls() -> None:
    """Forget what listeners were called with in the tests before."""
    from tests.pubsub.site import jobs

    jobs.called.clear()
    jobs.running.clear()
