"""What a transport is: it carries the text of a message to a service and brings that of the answer.

A transport reads nothing of what it carries: both texts are sealed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...futures.result import Future
    from ..protocol.messages import Message


class Transport:
    """The way to one service. `send` may be called from any thread and any event loop."""

    def send(self, wire: str, *, urgent: bool, deadline: float) -> Future[str]:
        """Send the message *wire*; return a future of the answer's text.

        *urgent* messages go before others where the transport has a queue. *deadline* is in seconds
        since the epoch: later the answer is of no use, and the future has ended with
        `DeadlinePassed`. Where the service cannot be reached, it ends with `Unavailable`. Nothing
        is raised here.
        """
        raise NotImplementedError

    def send_waiting(self, wire: str, *, deadline: float) -> Future[str]:
        """Send a message that waits in the service, as `send` does, without keeping others back.

        Cancelling the future ends the waiting as soon as it can.
        """
        return self.send(wire, urgent=False, deadline=deadline)

    def close(self) -> None:
        """Close connections. Futures that wait for an answer end with `Unavailable`."""


def send_message(transport: Transport, message: Message, wire: str, *, urgent: bool) -> Future[str]:
    """Send *message*, whose text is *wire*; return a future of the answer's text."""
    deadline = message.deadline / 1000
    if any(tree.end.name == "changes" for tree in message.trees):
        return transport.send_waiting(wire, deadline=deadline)
    return transport.send(wire, urgent=urgent, deadline=deadline)
