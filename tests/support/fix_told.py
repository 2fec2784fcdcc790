"""What the detector's logger says."""

import logging
from collections.abc import Iterator

import pytest

from pgbackend import detector


@pytest.fixture
def told() -> Iterator[list[str]]:
    """What the detector's logger says during the test."""
    messages: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    handler = Keep()
    detector.logger.addHandler(handler)
    yield messages
    detector.logger.removeHandler(handler)
