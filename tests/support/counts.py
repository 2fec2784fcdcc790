"""Counting rows."""

from tests.models import Elsewhere


async def count() -> int:
    """Count the rows on the second database."""
    return await Elsewhere.objects.acount()
