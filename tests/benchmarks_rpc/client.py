"""The process of a client: ``python -m tests.benchmarks_rpc.client '{...}'``.

It says in a line of JSON when it is ready, and answers each line that it reads with one.
"""

import importlib
import json
import os
import random
import sys
import time
from collections.abc import Iterator
from typing import Any

from tests.benchmarks.load import percentile
from tests.benchmarks.worker import say

# How many rows there are, with the primary keys from 1.
ROWS = 1_000

# How often a work is done at least.
LEAST = 3


class Client:
    """Asks a service; a subclass has a method for each work that it can do, by its kind."""

    def __init__(self, **options: Any) -> None:
        self._random = random.Random(1)
        # How many keys were asked for.
        self.reads = 0

    def keys(self, count: int) -> list[int]:
        """Return so many primary keys."""
        self.reads += count
        return [self._random.randint(1, ROWS) for _ in range(count)]

    def measure(self, kind: str, size: int, warm_up: float, seconds: float) -> Iterator[float]:
        """Do a work for so many *seconds* after *warm_up*, and yield how long each time took.

        It is done three times at least.
        """
        do = getattr(self, kind)
        warm = time.perf_counter() + warm_up
        while True:
            do(self.keys(size))
            if time.perf_counter() > warm:
                break
        count, end = 0, time.perf_counter() + seconds
        while (start := time.perf_counter()) < end or count < LEAST:
            do(self.keys(size))
            yield time.perf_counter() - start
            count += 1

    def close(self) -> None:
        """Close connections."""


def figures(size: int, took: list[float]) -> dict[str, Any]:
    found = sorted(took)
    return {
        "times": len(found),
        "rps": len(found) * size / sum(found),
        **{f"p{share:.0f}": percentile(found, share / 100) for share in (50, 90, 99)},
    }


def main() -> None:
    spec: dict[str, Any] = json.loads(sys.argv[1])
    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.benchmarks_rpc.settings"
    module = importlib.import_module(spec["module"])
    client: Client = module.Client(**spec["options"])
    say({"kinds": [each for each in spec["kinds"] if hasattr(client, each)]})
    for line in sys.stdin:
        words = json.loads(line)
        client.reads, began = 0, time.process_time()
        found = figures(words["size"], list(client.measure(**words)))
        # The warm-up included.
        found |= {"reads": client.reads, "cpu_client": time.process_time() - began}
        say(found)
    client.close()


if __name__ == "__main__":
    main()
