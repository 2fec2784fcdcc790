"""What the server saw while a block ran, from a thread and a connection of its own."""

import threading
from collections.abc import Set
from types import TracebackType

import psycopg


class BackendSampler:
    """Sample the backends with an application_name, all the time while the block runs.

    `samples` has the process ids of each look; `peak` is how many there were at once, and
    `pids` who was there at all.
    """

    # Seconds between two looks. Each look takes about one millisecond of the server's time.
    INTERVAL = 0.002

    def __init__(self, dsn: str, application_name: str) -> None:
        self.application_name = application_name
        self.samples: list[Set[int]] = []
        self._conn = psycopg.connect(dsn, autocommit=True)
        self._thread = threading.Thread(target=self._run)
        self._end = threading.Event()

    def __enter__(self) -> "BackendSampler":
        self.look()
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join()
        if exc_type is None:
            self.look()
        self._conn.close()

    @property
    def peak(self) -> int:
        """The most backends seen at once."""
        return max(len(pids) for pids in self.samples)

    @property
    def pids(self) -> Set[int]:
        """All backends seen."""
        return frozenset().union(*self.samples)

    @property
    def last(self) -> Set[int]:
        """The backends that were there when the block ended."""
        return self.samples[-1]

    def look(self) -> None:
        """Take one sample."""
        rows = self._conn.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = %s",
            [self.application_name],
        )
        self.samples.append(frozenset(pid for (pid,) in rows))

    def _run(self) -> None:
        while not self._end.wait(self.INTERVAL):
            self.look()
