"""Values of options: which name was meant by a misspelt one."""

from __future__ import annotations

import pytest
from django.core.checks import Error

from tests.support.checks import of
from tests.support.wrapper import AddAlias


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("turn_timout", "turn_timeout"),
        ("Bridge", "bridge"),
        ("cancel-timeout", "cancel_timeout"),
        ("pools", "pool"),
        ("isolation_levels", "isolation_level"),
        ("aplication_name", "application_name"),
        ("conect_timeout", "connect_timeout"),
    ],
)
def test_misspelt_options(option: str, meant: str, add_alias: AddAlias) -> None:
    """A key that neither Django, this backend nor libpq knows is an error with the nearest."""
    (message,) = of(add_alias({option: 1}))
    assert (type(message), message.id) == (Error, "pgbackend.E002")
    assert repr(option) in message.msg
    assert message.hint == f"Did you mean {meant!r}?"
