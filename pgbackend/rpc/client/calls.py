"""What was asked for and is not answered yet: a future, sent when its result is first wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from ...futures.result import Future
from ..protocol import nodes

T = TypeVar("T")


class Service(Protocol):
    """What sends calls: the client."""

    timeout: float

    def send(self, calls: Sequence[Call[Any]], *, timeout: float | None) -> None: ...


@dataclass(frozen=True)
class Later:
    """A part of the result of a call in the same message; see `Call.ref`."""

    call: Call[Any]
    path: tuple[str | int, ...]


class Call(Future[T]):
    """The result of one queryset or of one of its ends.

    It is sent when it is first awaited, or its `result` is asked for, or by `start`. Calls that
    `Client.gather` is given are sent together, in one message.
    """

    __slots__ = ("client", "convert", "tree", "urgent", "within")

    # Seconds until the deadline, where it is sent by itself; None: the client's.
    within: float | None

    def __init__(
        self,
        client: Service,
        tree: nodes.Tree,
        convert: Callable[[Any], T],
        *,
        urgent: bool = False,
    ) -> None:
        super().__init__(start=_send)
        self.client = client
        self.tree = tree
        self.convert = convert
        self.urgent = urgent
        self.within = None

    def ref(self, *path: str | int) -> Later:
        """Return what stands for a part of this result in a later call of the same message.

        *path* leads into the result: an attribute's name, or the index of a row before it.
        ``order.ref("id")`` is the id of the row that `order` will have created.
        """
        return Later(self, path)

    def take(self, value: Any) -> None:
        """End with *value*, as the service answered it."""
        try:
            self.set_result(self.convert(value))
        except Exception as error:
            self.set_exception(error)


def _send(call: Future[Any]) -> None:
    assert isinstance(call, Call)
    call.client.send([call], timeout=call.within)


def index_of(later: Later, calls: Sequence[Call[Any]]) -> nodes.Ref:
    """Return the reference to *later*'s call among *calls*; raise ValueError where it is none."""
    for index, call in enumerate(calls):
        if call is later.call:
            return nodes.Ref(index, later.path)
    raise ValueError("a result can be referred to in the same message alone: gather both calls")
