"""Handlers of logging that wait in the bridge while they hold their lock are reported."""

import asyncio
import logging

import pytest
from django.db import transaction

from pgbackend import bridged
from tests.models import Author
from tests.support.fix_loops import Main


class Records(logging.Handler):
    """Writes what is logged into a table, as some packages do."""

    def emit(self, record: logging.LogRecord) -> None:
        Author.objects.create(name=record.getMessage())


@pytest.mark.parametrize("where", ["bridge", "thread"])
def test_query_in_a_logging_handler(
    run_main: Main, told: list[str], where: str, request: pytest.FixtureRequest
) -> None:
    """A handler that waits for the database with its lock held is named, in a thread, too."""
    handler = type(f"Records{request.node.name}", (Records,), {})()
    logger = logging.getLogger("tests.locks")
    logger.addHandler(handler)

    async def main() -> None:
        async with transaction.atomic():
            if where == "bridge":
                await bridged(logger.warning)("written")
            else:
                await asyncio.to_thread(logger.warning, "written")
        assert await Author.objects.filter(name="written").aexists()

    try:
        run_main(main())
    finally:
        logger.removeHandler(handler)
    assert len(told) == 1
    assert told[0].startswith(f"the logging handler {type(handler).__name__} waits in the bridge")
    assert "QueueHandler" in told[0]
