"""Where a worker puts the answer of a message: where Celery puts the result of a task."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import redis.asyncio
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError, TimeoutError
from redis.retry import Retry

from .redis_answers import KEY, TIMEOUT

# How many results are stored at once by Celery's own, which blocks.
_THREADS = 4

# A Redis that goes away is asked again for some seconds.
_RETRIES = 6
_LONGEST_DELAY = 3.0


class RedisResults:
    """Stores results in the Redis at *url* for *keep* seconds, and publishes them, as Celery does.

    Celery's own way asks for the result first, and blocks.
    """

    def __init__(self, url: str, keep: int) -> None:
        self.url = url
        self.keep = keep
        self._client: Any = None

    async def store(self, task_id: str, answer: str, reply_to: str, correlation_id: str) -> None:
        """Store the answer of a message. Raise RedisError."""
        if self._client is None:
            self._client = redis.asyncio.from_url(
                self.url,
                socket_timeout=TIMEOUT,
                socket_connect_timeout=TIMEOUT,
                retry=Retry(ExponentialBackoff(cap=_LONGEST_DELAY, base=0.1), _RETRIES),
                retry_on_error=[ConnectionError, TimeoutError],
            )
        key = KEY + task_id
        text = json.dumps(
            {
                "status": "SUCCESS",
                "result": answer,
                "traceback": None,
                "children": [],
                "date_done": datetime.now(UTC).isoformat(),
                "task_id": task_id,
            }
        )
        async with self._client.pipeline(transaction=True) as pipeline:
            pipeline.set(key, text, ex=self.keep)
            pipeline.publish(key, text)
            await pipeline.execute()

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.aclose()


class CeleryResults:
    """Stores results by a *backend* of Celery, in threads."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="rpc-store")

    async def store(self, task_id: str, answer: str, reply_to: str, correlation_id: str) -> None:
        """Store the answer of a message. Raise what the backend raises."""
        request = SimpleNamespace(id=task_id, reply_to=reply_to, correlation_id=correlation_id)
        await asyncio.get_running_loop().run_in_executor(
            self._threads,
            lambda: self._backend.store_result(task_id, answer, "SUCCESS", request=request),
        )

    async def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False)
