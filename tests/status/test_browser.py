"""The page in a real browser, in the example project."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psycopg
import pytest

from tests.support.fix_chromium import Chromium, Window
from tests.support.fix_uvicorn import Site

pytestmark = pytest.mark.process

PASSWORD = "secret of the kitchen"

AXE = """
    window.found = null;
    axe.run().then((result) => {
        window.found = result.violations
            .filter((each) => ["serious", "critical"].includes(each.impact))
            .map((each) => each.id + ": " + each.nodes.map((node) => node.html).join(" "));
    });
"""

# The sessions that ask for the page.
ASKING = "query LIKE '%%activity AS MATERIALIZED%%'"

LONGEST_LINE = """
    Math.max(...[...document.querySelectorAll("svg path.s0")]
        .map((path) => (path.getAttribute("d") ?? "").length))
"""


@pytest.fixture
def window(site: Site, chromium: Chromium) -> Window:
    """The page, of a member of staff who has logged in, in a window of a phone's width."""
    site.run(
        *("-m", "proj", "createsuperuser", "--noinput"),
        *("--username=chef", "--email=chef@example.com"),
        DJANGO_SUPERUSER_PASSWORD=PASSWORD,
    )
    window = chromium.open(f"{site.url}/board/", width=360, height=640)
    window.run("document.querySelector('a[href=\"/status/\"]').click()")
    window.wait_for("location.pathname == '/admin/login/' && document.readyState == 'complete'")
    window.run(
        "document.querySelector('[name=username]').value = 'chef';"
        f"document.querySelector('[name=password]').value = '{PASSWORD}';"
        "document.querySelector('form').submit()"
    )
    window.wait_for("location.pathname == '/status/' && document.readyState == 'complete'")
    window.wait_for("document.getElementById('connection').dataset.state == 'live'")
    return window


@pytest.fixture
def blocked(site: Site) -> Iterator[int]:
    """The process id of a session whose statement waits for another session's lock."""
    site.add_dish("Soup", 3)
    script = "<script>window.broken = true</script>"
    with psycopg.connect(site.dsn) as holder:
        holder.execute("UPDATE kitchen_dish SET stock = 2")
        waiter = psycopg.connect(site.dsn)
        try:
            query = f'SELECT stock AS "{script}" FROM kitchen_dish WHERE stock < 9876 FOR UPDATE'
            waiter.pgconn.send_query(query.encode())
            yield waiter.info.backend_pid
        finally:
            # In the middle of its statement.
            waiter.cancel_safe()
            waiter.close()


def test_page(site: Site, window: Window, blocked: int) -> None:
    """The blocked statement appears, the lines move, and nothing is asked when nobody looks."""
    row = f"document.querySelector('[data-table=blocked] tbody')?.innerText.includes('{blocked}')"
    window.wait_for(row)
    text = window.run("document.querySelector('[data-table=blocked] tbody').innerText")
    # A name may look like a tag: it is text. A value is not shown.
    assert "<script>window.broken" in text
    assert "UPDATE kitchen_dish SET stock = …" in text
    assert "9876" not in text
    assert window.run("window.broken") is None
    assert site.count_backends(ASKING) == 1
    drawn = window.run(LONGEST_LINE)
    window.wait_for(f"{LONGEST_LINE} > {drawn}")
    assert window.run("document.documentElement.scrollWidth") <= 360

    spec = find_spec("axe_core_python")
    if spec is not None:
        assert spec.submodule_search_locations is not None
        axe = (Path(spec.submodule_search_locations[0]) / "axe.min.js").read_text()
        window.run(f"{axe};{AXE}")
        window.wait_for("window.found !== null")
        assert window.run("window.found") == []

    window.run("document.getElementById('pause').click()")
    site.wait_for(lambda: site.count_backends(ASKING) == 0)
    window.run("document.getElementById('pause').click()")
    window.wait_for("document.getElementById('connection').dataset.state == 'live'")
    window.go("about:blank")
    site.wait_for(lambda: site.count_backends(ASKING) == 0)
