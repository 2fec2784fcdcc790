"""A TCP proxy before a server, in a process of its own, that breaks connections when told to.

    proxy = LoadProxy("127.0.0.1", 5432, seed=1)
    ...  # connect to proxy.port on 127.0.0.1
    proxy.command("reset")
    proxy.close()

A session that it breaks is chosen at random, by *seed*. Beside the load and not on its event loop,
so that a loop which is busy does not hold up the network.
"""

from __future__ import annotations

import random
import selectors
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

# How long a frozen connection passes nothing on before it is reset, seconds.
FREEZE = 0.2

# What a client has sent when its session is in use, bytes; to connect takes less.
_SESSION = 1000

_SIZE = 65536

_RESET = struct.pack("ii", 1, 0)


class LoadProxy:
    """The proxy's process, as the load sees it."""

    def __init__(self, host: str, port: int, seed: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", Path(__file__), host, str(port), str(seed)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            # Ctrl-C is for the load, which ends the proxy when it is done.
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def command(self, name: str) -> None:
        """Break a session, soon: ``reset`` (RST), ``close`` (FIN), or ``freeze`` and then RST."""
        assert self._process.stdin is not None
        self._process.stdin.write(name[:1].encode())

    def settle(self) -> int:
        """Wait until it breaks nothing more, and return how many sessions it broke."""
        self.command("settle")
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


@dataclass
class _Link:
    """A client's connection: both ends, and what has been read for an end and not yet sent."""

    client: socket.socket
    server: socket.socket
    sent: int = 0
    frozen_until: float = 0.0
    waiting: dict[socket.socket, bytes] = field(default_factory=dict)

    def other(self, end: socket.socket) -> socket.socket:
        return self.server if end is self.client else self.client


class _Proxy:
    def __init__(self, host: str, port: int, seed: int) -> None:
        self.target = host, port
        self.random = random.Random(seed)
        self.links: dict[socket.socket, _Link] = {}
        self.broken = 0
        # Commands that found no session yet.
        self.commands: list[bytes] = []
        self.selector = selectors.DefaultSelector()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=100)

    def run(self) -> None:
        """Serve until standard input ends."""
        self.say(self.listener.getsockname()[1])
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.selector.register(sys.stdin, selectors.EVENT_READ)
        frozen: list[_Link] = []
        while True:
            for key, events in self.selector.select(FREEZE / 10 if frozen else None):
                if key.fileobj is sys.stdin:
                    commands = sys.stdin.buffer.raw.read(100)
                    if not commands:
                        return
                    self.commands += [bytes([each]) for each in commands]
                elif key.fileobj is self.listener:
                    self.accept()
                elif key.fileobj in self.links:
                    self.serve(key.fileobj, events)
            for link in frozen:
                if link.client in self.links and link.frozen_until < time.monotonic():
                    self.drop(link, reset=True)
            while self.commands and self.commands[0] != b"s" and self.obey(self.commands[0]):
                del self.commands[0]
            frozen = [link for link in self.sessions() if link.frozen_until]
            if self.commands[-1:] == [b"s"] and not frozen:
                # What found no session is given up.
                self.commands.clear()
                self.say(self.broken)

    def say(self, number: int) -> None:
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()

    def sessions(self) -> list[_Link]:
        return [link for end, link in self.links.items() if end is link.client]

    def obey(self, command: bytes) -> bool:
        links = [each for each in self.sessions() if each.sent > _SESSION and not each.frozen_until]
        if not links:
            return False
        link = self.random.choice(links)
        self.broken += 1
        if command == b"f":
            link.frozen_until = time.monotonic() + FREEZE
            for end in (link.client, link.server):
                self.watch(end, 0)
        else:
            self.drop(link, reset=command == b"r")
        return True

    def accept(self) -> None:
        client, _ = self.listener.accept()
        try:
            server = socket.create_connection(self.target, timeout=60.0)
        except OSError:
            client.close()
            return
        link = _Link(client, server)
        for end in (client, server):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.links[end] = link
            self.selector.register(end, selectors.EVENT_READ)

    def serve(self, end: socket.socket, events: int) -> None:
        link = self.links[end]
        try:
            if events & selectors.EVENT_WRITE:
                self.send(link, end, link.waiting.pop(end, b""))
            if events & selectors.EVENT_READ:
                data = end.recv(_SIZE)
                if not data:
                    self.drop(link, reset=False)
                    return
                link.sent += len(data) if end is link.client else 0
                self.send(link, link.other(end), data)
        except OSError:
            self.drop(link, reset=False)

    def send(self, link: _Link, end: socket.socket, data: bytes) -> None:
        data = link.waiting.pop(end, b"") + data
        try:
            done = end.send(data)
        except BlockingIOError:
            done = 0
        if done < len(data):
            link.waiting[end] = data[done:]
        # Nothing more is read for an end that takes nothing.
        for each in (link.client, link.server):
            events = 0 if link.waiting.get(link.other(each)) else selectors.EVENT_READ
            events |= selectors.EVENT_WRITE if link.waiting.get(each) else 0
            self.watch(each, events)

    def watch(self, end: socket.socket, events: int) -> None:
        watched = self.selector.get_map().get(end)
        if watched is None:
            if events:
                self.selector.register(end, events)
        elif not events:
            self.selector.unregister(end)
        elif watched.events != events:
            self.selector.modify(end, events)

    def drop(self, link: _Link, *, reset: bool) -> None:
        for end in (link.client, link.server):
            self.watch(end, 0)
            del self.links[end]
            if reset and end is link.client:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            end.close()


if __name__ == "__main__":
    _Proxy(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])).run()
