"""The pages: their code, their links, and whether the reference has all there is.

`tests/pages` runs the code.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
from psycopg_pool import AsyncConnectionPool

import pgbackend
from pgbackend import conf, transaction
from pgbackend.pool.options import POOL_DEFAULTS
from pgbackend.wrapper.options import Options
from tests.pages.examples import FENCED, ROOT, blocks_of

DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted(DOCS.rglob("*.md")),
]

each_page = pytest.mark.parametrize(
    "page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES]
)

_LINK = re.compile(r"(?<!!)\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^()\s]+)\)")
_SETTING = re.compile(r"\bPGBACKEND_[A-Z]\w*")


def python_of(page: Path) -> list[ast.Module]:
    """Return the page's blocks of Python, parsed."""
    return [
        compile(
            block.text,
            str(block),
            "exec",
            ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
            dont_inherit=True,
        )
        for block in blocks_of(page, "python")
    ]


def prose_of(page: Path) -> str:
    """Return the page without its blocks of code."""
    return FENCED.sub("", page.read_text())


def anchors_of(page: Path) -> set[str]:
    """Return the anchors that code hosts, and MyST, give to a page's headings."""
    anchors = set()
    seen: Counter[str] = Counter()
    for heading in re.findall(r"^#+ +(.+?) *$", prose_of(page), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        anchors.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return anchors


def settings_page() -> str:
    return (DOCS / "reference" / "settings.md").read_text()


def api_page() -> str:
    return (DOCS / "reference" / "api.md").read_text()


@each_page
def test_python_parses(page: Path) -> None:
    """Each block of Python is Python, asynchronous statements at its top allowed."""
    python_of(page)


@each_page
def test_imports_of_the_package(page: Path) -> None:
    """What the examples import from the package is there."""
    for tree in python_of(page):
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                modules = [node.module or ""]
            elif isinstance(node, ast.Import):
                modules = [name.name for name in node.names]
            else:
                continue
            if find_spec("pgtrigger") is None and "pgbackend.pubsub" in modules[0]:
                # An environment without the extra "pubsub".
                continue
            if any(module.partition(".")[0] == "pgbackend" for module in modules):
                exec(ast.unparse(node), {})


@each_page
def test_links(page: Path) -> None:
    """Each relative link is to a file that is there, and to a heading in it."""
    wrong = []
    for target in _LINK.findall(re.sub(r"`[^`\n]+`", "``", prose_of(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if (
            not file.exists()
            or not file.is_relative_to(ROOT)
            or (anchor and anchor not in anchors_of(file))
        ):
            wrong.append(target)
    assert not wrong


@each_page
def test_settings_that_are_named(page: Path) -> None:
    """A page names no setting that the backend does not read."""
    assert set(_SETTING.findall(page.read_text())) <= conf.SETTINGS.keys()


def test_readme_is_short() -> None:
    """The README has at most 200 lines."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_settings_are_in_the_reference() -> None:
    """The reference has a row for each setting of a project."""
    for name in conf.SETTINGS:
        assert f"\n| `{name}` | " in settings_page()


def test_options_are_in_the_reference() -> None:
    """The reference has a row for each option of an alias, with its default."""
    for field in dataclasses.fields(Options):
        row = re.search(rf"^\| `{field.name}` \| `([^`]*)`", settings_page(), re.MULTILINE)
        assert row is not None, field.name
        assert ast.literal_eval(row[1]) == field.default


def test_options_of_the_pool_are_in_the_reference() -> None:
    """The reference has all arguments of psycopg's pool, and a row with each default of ours."""
    for name in set(inspect.signature(AsyncConnectionPool.__init__).parameters) - {"self"}:
        assert f"`{name}`" in settings_page()
    for name, default in POOL_DEFAULTS.items():
        row = re.search(rf"^\| `{name}` \| `([^`]*)`", settings_page(), re.MULTILINE)
        assert row is not None, name
        assert ast.literal_eval(row[1]) == default


def test_public_names_are_in_the_reference() -> None:
    """The reference has each public name of the package and of its transaction module."""
    for name in {*pgbackend.__all__, *transaction.__all__} - {"__version__"}:
        assert re.search(rf"`{name}[`(]", api_page()), name


def test_checks_are_in_the_reference() -> None:
    """The reference has each system check, and no other."""
    code = "".join(file.read_text() for file in (ROOT / "pgbackend").rglob("*.py"))
    page = (DOCS / "reference" / "checks.md").read_text()
    rows = set(re.findall(r"^\| `(pgbackend\.[EW]\d+)`", page, re.MULTILINE))
    assert rows == set(re.findall(r"id=\"(pgbackend\.[EW]\d+)\"", code))


def test_modules_are_in_the_architecture() -> None:
    """The lists of the package's rooms have each module, and no other."""
    page = (DOCS / "explanation" / "architecture.md").read_text()
    table = "".join(re.findall(r"^\| (`.*?) \|", page, re.MULTILINE))
    package = ROOT / "pgbackend"
    modules = {str(file.relative_to(package)) for file in package.rglob("[!_]*.py")}
    assert set(re.findall(r"`([\w/]+\.py)`", table)) == modules


def pubsub_page() -> str:
    return (DOCS / "reference" / "pubsub.md").read_text()


def test_pubsub_is_in_the_reference() -> None:
    """The reference has each public name, option, setting and state of channels."""
    from pgbackend import pubsub
    from pgbackend.pubsub import settings

    page = pubsub_page()
    for name in {*pubsub.__all__, *settings.SETTINGS}:
        assert re.search(rf"`{name}[`(]", page), name
    assert set(re.findall(r"^\| `(PGPUBSUB_\w+)`", page, re.MULTILINE)) == set(settings.SETTINGS)


def test_names_of_pubsub_can_be_imported() -> None:
    """What the reference names beside the commands and settings is imported from the package."""
    from pgbackend import pubsub

    sections = dict(re.findall(r"^## (.+)\n((?:(?!##).*\n)*)", pubsub_page(), re.MULTILINE))
    for section in ("Channels", "Listeners", "Sending", "Streams", "Context"):
        rows = re.findall(r"^\| (`.+?`) \|", sections[section], re.MULTILINE)
        names = re.findall(r"`(\w+)[`(]", " ".join(rows))
        assert names
        assert [name for name in names if not hasattr(pubsub, name)] == [], section


def test_checks_of_pubsub_are_in_the_reference() -> None:
    """The reference has each system check of channels, and no other."""
    code = "".join(file.read_text() for file in (ROOT / "pgbackend" / "pubsub").rglob("*.py"))
    rows = set(re.findall(r"^\| `(pgpubsub\.[EW]\d+)`", pubsub_page(), re.MULTILINE))
    assert rows == set(re.findall(r"id=\"(pgpubsub\.[EW]\d+)\"", code))
