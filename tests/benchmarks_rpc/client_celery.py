"""A client of plain Celery."""

from typing import Any

from tests.benchmarks_rpc import client


class Client(client.Client):
    """Calls a *task* by ``apply_async`` and waits for its result by ``get``."""

    def __init__(self, *, task: str, queue: str) -> None:
        super().__init__()
        from tests.benchmarks_rpc import plain

        self.task: Any = getattr(plain, task)
        self.queue = queue

    def _send(self, key: int) -> Any:
        return self.task.apply_async((key,), queue=self.queue)

    def thread(self, keys: list[int]) -> None:
        self._send(keys[0]).get(timeout=30)

    def many(self, keys: list[int]) -> None:
        results = [self._send(key) for key in keys]
        for each in results:
            each.get(timeout=30)

    def singly(self, keys: list[int]) -> None:
        for key in keys:
            self._send(key).get(timeout=30)
