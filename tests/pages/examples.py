"""The examples of the pages: the blocks of Python in README.md and in docs/."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]

# A fenced block at any indentation, with the word after its fence.
FENCED = re.compile(r"^([ \t]*)(`{3,})([^`\n]*)\n(.*?)^\1\2[ \t]*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Example:
    """A block of code, at a line of a page."""

    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}, line {self.line}"

    def run(self, name: str = "example", **names: Any) -> Any:
        """Run it as the module *name*, which has *names* before, and return the module."""
        module = ModuleType(name)
        vars(module).update(names)
        # The empty lines make the numbers in tracebacks those of the page.
        exec(compile("\n" * self.line + self.text, str(self), "exec"), vars(module))
        return module

    def settings(self) -> dict[str, Any]:
        """Run it and return the settings that it makes."""
        return {name: value for name, value in vars(self.run()).items() if name.isupper()}

    def write(self, path: Path, *, before: str = "", after: str = "") -> None:
        """Write it to a file of a project, between what else the file has."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{before}{self.text}{after}")


# Those that a test has asked for.
USED: set[Example] = set()


def blocks_of(page: Path, *languages: str) -> list[Example]:
    """Return a page's blocks of code in one of *languages*."""
    name, source = str(page.relative_to(ROOT)), page.read_text()
    return [
        Example(name, source.count("\n", 0, block.start()) + 1, textwrap.dedent(block[4]))
        for block in FENCED.finditer(source)
        if block[3].strip().removeprefix("{code-block} ") in languages
    ]


def all_examples() -> list[Example]:
    """Return the blocks of Python in the pages for users."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [example for page in pages for example in blocks_of(page, "python")]


def example(page: str, words: str, language: str = "python") -> Example:
    """Return the one example of a page that has *words*."""
    found = [each for each in blocks_of(ROOT / page, language) if words in each.text]
    if len(found) != 1:
        raise LookupError(f"{page} has {len(found)} examples with {words!r}")
    USED.add(found[0])
    return found[0]
