"""Operations: where Django finds the compilers."""

from django.db import connection, connections
from django.test.utils import CaptureQueriesContext

from pgbackend import bridged, compiler
from tests.models import Author


def test_compilers_are_ours() -> None:
    """Django finds each of its compilers in this backend's module."""
    for name in (
        "SQLCompiler",
        "SQLInsertCompiler",
        "SQLUpdateCompiler",
        "SQLDeleteCompiler",
        "SQLAggregateCompiler",
    ):
        assert connection.ops.compiler(name) is getattr(compiler, name)


async def test_bulk_insert_by_unnest() -> None:
    """A bulk insert is compiled as by Django's own backend, with UNNEST."""

    @bridged
    def work() -> list[str]:
        with CaptureQueriesContext(connections["default"]) as queries:
            Author.objects.bulk_create([Author(name=name) for name in "abc"])
        return [query["sql"] for query in queries]

    (statement,) = [sql for sql in await work() if "INSERT" in sql]
    assert "UNNEST" in statement
    assert [author.name async for author in Author.objects.order_by("name")] == ["a", "b", "c"]
