"""The layout of the tests: what they share is in `tests/support` and `tests/site`."""

import ast
from pathlib import Path

TESTS = Path(__file__).parent
FILES = sorted(TESTS.rglob("*.py"))


def imported(file: Path) -> set[str]:
    """Return the names of the modules that *file* imports or names in a string."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.Import():
                found |= {alias.name for alias in node.names}
            case ast.ImportFrom(module=str(module)):
                found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
            case ast.Constant(value=str(text)):
                # Scripts that run in processes of their own.
                lines = [line.split() for line in text.splitlines()]
                found |= {
                    words[1] for words in lines if words[:1] in (["from"], ["import"]) and words[1:]
                }
    return found


def test_no_test_is_imported() -> None:
    """No file imports a test or a conftest."""
    wrong = [
        f"{file.relative_to(TESTS)}: {name}"
        for file in FILES
        for name in sorted(imported(file))
        if name.startswith("tests.")
        and any(part.startswith("test_") or part == "conftest" for part in name.split("."))
    ]
    assert wrong == []
