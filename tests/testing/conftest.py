"""The runner of synchronous functions."""

from collections.abc import Iterator

import pytest

from pgbackend.runner import Runner


@pytest.fixture
def runner() -> Iterator[Runner]:
    """A runner, closed after the test."""
    with Runner() as runner:
        yield runner
