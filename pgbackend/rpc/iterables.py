"""What a recorded queryset is evaluated by: Django's classes tell its forms from each other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from django.db.models import query


class RpcIterable(query.BaseIterable):
    """Sends the queryset; yields the rows, which come in one answer whatever *chunk_size*."""

    def __iter__(self) -> Iterator[Any]:
        return iter(self.queryset.rows_future().result())

    def __aiter__(self) -> AsyncIterator[Any]:
        async def rows() -> AsyncIterator[Any]:
            for each in await self.queryset.rows_future():
                yield each

        return rows()


class RpcModelIterable(RpcIterable, query.ModelIterable):
    """Yields instances."""


class RpcValuesIterable(RpcIterable, query.ValuesIterable):
    """Yields dictionaries."""


class RpcValuesListIterable(RpcIterable, query.ValuesListIterable):
    """Yields tuples."""


class RpcNamedIterable(RpcIterable, query.NamedValuesListIterable):
    """Yields named tuples."""


class RpcFlatIterable(RpcIterable, query.FlatValuesListIterable):
    """Yields values."""
