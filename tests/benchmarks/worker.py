"""The process of one peer doing one work: ``python -m tests.benchmarks.worker '{...}'``.

It runs in the peer's own environment. When it is ready it says so in a line of JSON; then each
line that it reads asks for a turn, and is answered by one with what was measured. In between it
stands still, with its connections open.
"""

import importlib
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.benchmarks.load import Window


def memory(field: str) -> int | None:
    """Return VmRSS or VmHWM of this process, bytes; None where there is no /proc."""
    try:
        with open("/proc/self/status") as status:
            for line in status:
                if line.startswith(f"{field}:"):
                    return int(line.split()[1]) * 1024
    except FileNotFoundError:
        pass
    return None


def say(words: dict[str, Any]) -> None:
    print(json.dumps(words), flush=True)


class Turns:
    """The turns that a process is asked for: each is the ``warm_up`` and ``seconds`` of it."""

    def __init__(self, queries: int) -> None:
        # Of a request.
        self._queries = queries
        self._before: int | None = None

    def __iter__(self) -> Iterator[dict[str, float]]:
        """Wait for each turn, and that without giving way to anything else in this process."""
        self._before = memory("VmRSS")
        say({"ready": True})
        for line in sys.stdin:
            yield json.loads(line)

    def answer(self, window: "Window") -> None:
        """Say what was measured in the turn."""
        memories = {"memory_before": self._before, "memory_peak": memory("VmHWM")}
        say(window.figures(self._queries) | memories)


def main() -> None:
    spec: dict[str, Any] = json.loads(sys.argv[1])
    # First of all: gevent's replaces parts of the standard library.
    module = importlib.import_module(spec["module"])
    peer = module.Peer(spec["dsn"], spec["pool"], **spec["options"])
    if not hasattr(peer, spec["operation"]):
        say({"unsupported": True})
        return
    peer.run(spec, Turns(spec["repeat"] * spec["queries"]))


if __name__ == "__main__":
    main()
