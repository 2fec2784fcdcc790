"""The examples of the page on COPY."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pages.examples import example
from tests.support.kitchen import make_dish
from tests.support.server import Server

pytestmark = pytest.mark.usefixtures("kitchen")

DISHES = example("docs/howto/copy.md", "def import_dishes")
FIRST = example("docs/howto/copy.md", "def first_sold_out")


async def test_dishes(tmp_path: Path, server: Server) -> None:
    """What was exported can be imported."""
    await make_dish("Soup, hot")
    await make_dish("Bread", stock=0)
    code = DISHES.run()
    await code.export_dishes(tmp_path / "dishes.csv")
    server.all("DELETE FROM kitchen_dish")
    assert await code.import_dishes(tmp_path / "dishes.csv") == 2
    assert await FIRST.run().first_sold_out() == "Bread"
