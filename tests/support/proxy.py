"""A TCP proxy before a PostgreSQL server that does to connections what networks do.

    async with Proxy(host, port) as proxy:
        ...  # connect to proxy.port on 127.0.0.1
        proxy.freeze()

It runs on the test's own event loop.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from types import TracebackType

# Which of the client's messages a rule is about: a part of their bytes.
Trigger = bytes


class Link:
    """One client's connection through the proxy."""

    def __init__(
        self, client: asyncio.StreamWriter, server: asyncio.StreamWriter, *, cancels: bool
    ) -> None:
        self.client = client
        self.server = server
        # Whether it carries a cancellation, not a session.
        self.cancels = cancels
        # Whether replies are no longer passed on.
        self.mute = False
        # What is passed on in place of the next reply.
        self.instead = b""
        # For how long, in seconds, the next message is kept before it is passed on.
        self.hold = 0.0

    def reset(self) -> None:
        """Send RST to the client, as after a crash of the machine, and drop the server's side."""
        linger = struct.pack("ii", 1, 0)
        sock: socket.socket = self.client.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.client.transport.abort()
        self.server.transport.abort()

    def finish(self) -> None:
        """Send FIN to the client, and to the server."""
        self.client.close()
        self.server.close()


class Proxy:
    """A proxy on 127.0.0.1 at `port` before the server at *host* and *port*.

    `delay`, in seconds, is how long each piece of the server's waits; `slices`, in bytes, how large
    pieces are at most (0: as they come). `accepting` False refuses new connections.
    """

    def __init__(self, host: str, port: int) -> None:
        self.target = host, port
        self.port = 0
        self.delay = 0.0
        self.slices = 0
        self.accepting = True
        # All that were ever accepted, and those that still live.
        self.accepted = 0
        self.links: list[Link] = []
        # How many pieces the clients have sent; small messages are a piece each.
        self.messages = 0
        # How many bytes they have sent.
        self.size = 0
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._rules: list[tuple[Trigger, Callable[[Link], None]]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    @property
    def frozen(self) -> bool:
        """Whether nothing passes any more, though all connections stay open."""
        return not self._thawed.is_set()

    def freeze(self) -> None:
        """Pass nothing on, in either direction; new connections are accepted and then frozen."""
        self._thawed.clear()

    def thaw(self) -> None:
        """Go on where `freeze` stopped."""
        self._thawed.set()

    def reset(self) -> None:
        """Reset all connections (RST)."""
        for link in self.links.copy():
            link.reset()

    def finish(self) -> None:
        """Close all connections (FIN)."""
        for link in self.links.copy():
            link.finish()

    def on(self, message: Trigger, action: Callable[[Link], None]) -> None:
        """Call *action*, once, when a client sends *message*, before that is passed on."""
        self._rules.append((message, action))

    def freeze_at(self, message: Trigger) -> None:
        """Freeze when a client sends *message*: the server does not get it."""
        self.on(message, lambda link: self.freeze())

    def drop_reply_to(self, message: Trigger) -> None:
        """Let the server get *message*, and reset the connection instead of its reply."""
        self.on(message, lambda link: setattr(link, "mute", True))

    def hold(self, message: Trigger, seconds: float) -> None:
        """Let the server get *message*, and what the client sends after it, *seconds* later."""
        self.on(message, lambda link: setattr(link, "hold", seconds))

    def fail(self, message: Trigger, severity: str, code: str) -> None:
        """Let the server get *message*, and tell the client of an error in place of its reply."""
        fields = f"S{severity}\0V{severity}\0C{code}\0Mthe server is gone\0\0".encode()
        error = b"E" + struct.pack("!i", len(fields) + 4) + fields
        idle = b"Z" + struct.pack("!ic", 5, b"I")
        self.on(message, lambda link: setattr(link, "instead", error + idle))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.accepted += 1
        link = None
        try:
            if not self.accepting:
                return
            await self._thawed.wait()
            # A cancellation is a message of 16 bytes with a code of its own.
            first = await reader.read(65536)
            theirs, ours = await asyncio.open_connection(*self.target)
            link = Link(writer, ours, cancels=first[4:8] == b"\x04\xd2\x16\x2e")
            self.links.append(link)
            ours.write(first)
            up = asyncio.ensure_future(self._up(reader, link))
            down = asyncio.ensure_future(self._down(theirs, link))
            try:
                await asyncio.wait([up, down], return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in (up, down):
                    each.cancel()
                await asyncio.wait([up, down])
        except (OSError, asyncio.CancelledError):
            # The network's faults are what it is for; it ends by being cancelled.
            pass
        finally:
            if link is not None:
                self.links.remove(link)
                link.server.transport.abort()
            writer.close()

    async def _up(self, reader: asyncio.StreamReader, link: Link) -> None:
        while data := await reader.read(65536):
            self.messages += 1
            self.size += len(data)
            for rule in self._rules.copy():
                if rule[0] in data:
                    self._rules.remove(rule)
                    rule[1](link)
            seconds, link.hold = link.hold, 0.0
            await asyncio.sleep(seconds)
            await self._thawed.wait()
            link.server.write(data)
            await link.server.drain()

    async def _down(self, reader: asyncio.StreamReader, link: Link) -> None:
        while data := await reader.read(65536):
            if link.mute:
                link.reset()
                return
            if link.instead:
                data, link.instead = link.instead, b""
            size = self.slices or len(data)
            for start in range(0, len(data), size):
                if self.delay:
                    await asyncio.sleep(self.delay)
                await self._thawed.wait()
                link.client.write(data[start : start + size])
                await link.client.drain()
                if self.slices:
                    # Apart from the next: each piece is a packet.
                    await asyncio.sleep(0)
