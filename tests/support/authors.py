"""Authors that tests write."""

from tests.models import Author


async def write(name: str) -> str:
    """Write an author and return its name."""
    await Author.objects.acreate(name=name)
    return name
