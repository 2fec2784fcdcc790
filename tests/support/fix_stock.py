"""An alias of Django's own backend."""

import pytest

from tests.support.wrapper import AddAlias


@pytest.fixture
def stock(add_alias: AddAlias) -> str:
    """An alias of Django's own backend."""
    return add_alias({}, ENGINE="django.db.backends.postgresql")
