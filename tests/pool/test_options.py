"""OPTIONS["pool"]: psycopg_pool's arguments, with defaults."""

from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured

from tests.models import Author
from tests.support.pool import settled
from tests.support.wrapper import make_wrapper, use_wrapper


@pytest.mark.parametrize("pool", [None, True, False, {}])
async def test_defaults(pool: Any) -> None:
    """Without arguments the pool has the documented sizes and times."""
    async_pool = make_wrapper(options={"pool": pool}).async_pool
    assert (async_pool.min_size, async_pool.max_size) == (0, 20)
    assert (async_pool.timeout, async_pool.max_waiting) == (30.0, 1000)
    assert (async_pool.max_lifetime, async_pool.max_idle) == (3600.0, 600.0)
    assert async_pool.name == "default"


async def test_pool_without_the_option() -> None:
    """An alias whose OPTIONS say nothing of a pool has one with the defaults."""
    wrapper = make_wrapper("other")
    assert "pool" not in wrapper.settings_dict["OPTIONS"]
    assert wrapper.async_pool.max_size == 20


async def test_arguments_reach_the_pool() -> None:
    """What the dict says is what the pool has; the rest keeps its default."""
    pool = make_wrapper(
        options={"pool": {"min_size": 1, "max_size": 3, "timeout": 2.5, "name": "kitchen"}}
    ).async_pool
    assert (pool.min_size, pool.max_size, pool.timeout, pool.name) == (1, 3, 2.5, "kitchen")
    assert pool.max_waiting == 1000


async def test_min_size_alone_is_the_size() -> None:
    """A lower bound without an upper one makes a pool of that size, as in psycopg_pool."""
    pool = make_wrapper(options={"pool": {"min_size": 25}}).async_pool
    assert (pool.min_size, pool.max_size) == (25, 25)


async def test_min_size_is_filled() -> None:
    """A pool with a lower bound opens that many connections unasked."""
    wrapper = make_wrapper(options={"pool": {"min_size": 2, "max_size": 3}})
    assert wrapper.async_pool.get_stats()["pool_size"] == 2
    assert (await settled(wrapper))["pool_available"] == 2


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        (
            {"maxsize": 5, "min_siez": 1},
            r"unknown keys: 'maxsize' \(did you mean 'max_size'\?\),"
            r" 'min_siez' \(did you mean 'min_size'\?\); known are .*max_size",
        ),
        ({"configure": print}, r"unknown keys: 'configure'"),
        ({"min_size": 5, "max_size": 2}, r"max_size must be greater or equal than min_size"),
        ({"min_size": -1}, r"\['min_size'\] is a whole number of 0 or more, not -1"),
        ({"max_size": "8"}, r"\['max_size'\] is a whole number of 1 or more, or None, not '8'"),
        ({"max_size": None}, r"without a max_size, min_size must be greater than 0"),
        ({"timeout": float("nan")}, r"\['timeout'\] is a number of seconds above 0, not nan"),
        ({"timeout": float("inf")}, r"\['timeout'\] is a number of seconds above 0, not inf"),
        ({"max_idle": 0}, r"\['max_idle'\] is a number of seconds above 0, not 0"),
        ({"check": "yes"}, r"\['check'\] is a function, or None, not 'yes'"),
        ("big", r"is a bool or a dict, not 'big'"),
        (5, r"is a bool or a dict, not 5"),
    ],
)
async def test_bad_options(pool: Any, message: str) -> None:
    """Bad pool options are ImproperlyConfigured that names the setting and what is wrong."""
    use_wrapper(options={"pool": pool})
    setting = r"DATABASES\['default'\]\['OPTIONS'\]\['pool'\]"
    with pytest.raises(ImproperlyConfigured, match=f"{setting}.*{message}"):
        await Author.objects.acount()
