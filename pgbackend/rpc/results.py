"""What stands for a result that is not there yet: futures, parts of them, delayed querysets."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from ..futures import Future

if TYPE_CHECKING:
    from .protocol import nodes

T = TypeVar("T")


class Reference:
    """A part of a future's result, to be passed into a later call of the same message.

    ``future["id"]`` of a row is its field, ``future[0]["id"]`` that of a first row. It stands
    wherever a value stands.
    """

    # Where an expression is expected; a message's own code takes it from there.
    conditional = False
    contains_aggregate = False
    contains_over_clause = False

    def __init__(self, future: RpcFuture[Any], path: tuple[str | int, ...]) -> None:
        self.future = future
        self.path = path

    def __getitem__(self, key: str | int) -> Reference:
        return Reference(self.future, (*self.path, key))

    def __iter__(self) -> Any:
        raise TypeError("a part of a result that is not there yet has no items to iterate over")

    def __repr__(self) -> str:
        return f"<Reference {list(self.path)} of {self.future!r}>"

    def resolve_expression(self, *_args: Any, **_kwargs: Any) -> Any:
        """Fail: only a message to the same service can refer to its results."""
        raise TypeError("a result that is not there yet cannot be part of a local query")

    def value(self) -> Any:
        """Return the part of a result that is there."""
        found = self.future.result()
        for key in self.path:
            if isinstance(key, str) and not isinstance(found, dict):
                found = getattr(found, key)
            else:
                found = found[key]
        return found


class RpcFuture(Future[T]):
    """The result of a call of a service.

    It is sent when its result is first wanted, by `submit`, or with others in one message:
    ``connections["rpc"].cursor().gather(first, second)``.
    """

    __slots__ = ("batch", "convert", "database", "failed", "tree", "urgent", "within")

    # The alias of the service.
    database: str
    tree: nodes.Tree
    # What makes the result of what the service has answered.
    convert: Callable[[Any], T]
    # What makes the exception of an error of the service.
    failed: Callable[[Any], BaseException]
    # The message's calls, once it is sent.
    batch: Any
    urgent: bool
    # Seconds until the deadline; None: the alias's TIMEOUT.
    within: float | None

    def submit(self) -> RpcFuture[T]:
        """Send the call now, unless it was sent; return the future."""
        self.start()
        return self

    def __getitem__(self, key: str | int) -> Reference:
        """Return what stands for a part of the result in a later call of the same message."""
        return Reference(self, (key,))

    def __iter__(self) -> Any:
        raise TypeError("a future has no items before its result: call result(), or await it")


class Delayed:
    """A queryset that is passed as a value, to be run inside another one by the service."""

    def __init__(self, queryset: Any) -> None:
        self.queryset = queryset

    def compute(self) -> Any:
        """Run the queryset now; return its rows as a list."""
        return list(self.queryset.all())

    async def acompute(self) -> list[Any]:
        """Run the queryset now; return its rows as a list."""
        return [row async for row in self.queryset.all()]

    def __iter__(self) -> Any:
        return iter(self.compute())

    def __repr__(self) -> str:
        return f"<Delayed {self.queryset.query}>"
