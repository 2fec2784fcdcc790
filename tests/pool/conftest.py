"""A wrapper whose borrowers get the same connection, one after the other."""

import pytest

from pgbackend.base import DatabaseWrapper
from tests.support.wrapper import make_wrapper


@pytest.fixture
def wrapper() -> DatabaseWrapper:
    """A wrapper with a pool of one: each borrower gets the same connection."""
    return make_wrapper(options={"pool": {"max_size": 1, "timeout": 5.0}})
