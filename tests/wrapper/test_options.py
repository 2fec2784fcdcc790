"""The backend's own OPTIONS: wrong ones are reported at their first use."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from psycopg.rows import dict_row

from tests.models import Author
from tests.support.checks import NAN
from tests.support.wrapper import AddAlias


@pytest.mark.parametrize(
    "option",
    [
        {"turn_timeout": NAN},
        {"reset": "never"},
        {"prepare_threshold": "5"},
        {"row_factory": dict_row},
    ],
)
async def test_use_with_wrong_options(option: dict[str, Any], add_alias: AddAlias) -> None:
    """Whoever uses the database with a wrong option gets ImproperlyConfigured that names it."""
    alias = add_alias(option)
    with pytest.raises(ImproperlyConfigured, match=f"'{next(iter(option))}'"):
        await Author.objects.using(alias).acount()


def test_synchronous_use_with_wrong_options(add_alias: AddAlias) -> None:
    """So does synchronous code."""
    wrapper = connections[add_alias({"cancel_timeout": NAN})]
    with pytest.raises(ImproperlyConfigured, match="'cancel_timeout'"):
        wrapper.ensure_connection()
