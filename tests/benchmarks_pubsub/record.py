"""What the handlers of all peers call, and what it comes to.

Times are those of `time.perf_counter_ns`, which on Linux and macOS is one clock for all processes
of a machine.
"""

import time
from array import array
from typing import Any

from tests.benchmarks.load import percentile
from tests.benchmarks.worker import memory

now = time.perf_counter_ns


class Record:
    """When messages were sent and when their handlers were called, in nanoseconds."""

    def __init__(self) -> None:
        self.sent = array("q")
        self.handled = array("q")
        # Messages that the handler of another channel got.
        self.astray = 0
        self.memory_before = memory("VmRSS")

    def note(self, sent: int) -> None:
        """Note that the handler of a message is called now."""
        self.handled.append(now())
        self.sent.append(sent)

    def clear(self) -> None:
        """Forget all messages."""
        self.sent, self.handled = array("q"), array("q")

    def latencies(self, since: int) -> list[float]:
        """Return how long messages took that were sent *since* then, seconds, sorted."""
        pairs = zip(self.sent, self.handled, strict=False)
        return sorted((handled - sent) / 1e9 for sent, handled in pairs if sent >= since)

    def samples(self, since: int, count: int, timeout: float) -> dict[str, Any]:
        """Return figures of the *count* messages sent *since* then, once they are all there.

        Those that are not, *timeout* seconds later, are lost. May be called in another thread.
        """
        deadline = time.monotonic() + timeout
        while len(found := self.latencies(since)) < count and time.monotonic() < deadline:
            time.sleep(0.02)
        return {
            "messages": len(found),
            "lost": count - len(found),
            "astray": self.astray,
            "p50": percentile(found, 0.5),
            "p90": percentile(found, 0.9),
            "p99": percentile(found, 0.99),
            "memory_before": self.memory_before,
            "memory": memory("VmRSS"),
        }

    def drained(self, began: int, ended: int) -> dict[str, Any]:
        """Return figures of a drain: messages a second, in all, and in its first and last tenth."""
        handled = len(self.handled)
        figures: dict[str, Any] = {"messages": handled, "seconds": (ended - began) / 1e9}
        if handled:
            figures["rps"] = handled / figures["seconds"]
            figures["seconds_per_row"] = figures["seconds"] / handled
        tenth = handled // 10
        if tenth:
            figures["first"] = tenth * 1e9 / (self.handled[tenth - 1] - began)
            last = self.handled[-1] - self.handled[-1 - tenth]
            figures["last"] = tenth * 1e9 / last if last else None
        return figures
