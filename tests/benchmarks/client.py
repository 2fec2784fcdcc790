"""An HTTP client for where there is no wrk, in a process of its own; it prints JSON.

``python -m tests.benchmarks.client PORT PATH CONNECTIONS SECONDS SESSION...``
"""

import asyncio
import json
import re
import sys
import time

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


async def client(port: int, path: str, session: str, done: list[tuple[float, float, bool]]) -> None:
    """Send one request after the other on one connection, until cancelled."""
    request = (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nCookie: sessionid={session}\r\n\r\n"
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        while True:
            began = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(head)
            if length is None:
                raise ValueError(f"no content-length in {head!r}")
            await reader.readexactly(int(length[1]))
            now = time.perf_counter()
            done.append((now, now - began, head.startswith(b"HTTP/1.1 200")))
    finally:
        writer.close()


async def main() -> None:
    port, path, connections, seconds, *sessions = sys.argv[1:]
    done: list[tuple[float, float, bool]] = []
    tasks = [
        asyncio.create_task(client(int(port), path, sessions[number], done))
        for number in range(int(connections))
    ]
    began = time.perf_counter()
    await asyncio.sleep(float(seconds))
    ended = time.perf_counter()
    for task in tasks:
        task.cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    broken = [str(end) for end in ends if not isinstance(end, asyncio.CancelledError)]
    counted = [each for each in done if began <= each[0] < ended]
    latencies = sorted(latency for _, latency, _ in counted)
    print(
        json.dumps(
            {
                "seconds": ended - began,
                "requests": len(counted),
                "rps": len(counted) / (ended - began),
                "p50": latencies[len(latencies) // 2] if latencies else None,
                "p90": latencies[len(latencies) * 9 // 10] if latencies else None,
                "p99": latencies[len(latencies) * 99 // 100] if latencies else None,
                "errors": len(broken) + sum(not good for _, _, good in counted),
                "error": (broken or ["a status that is not 200"])[0],
            }
        )
    )


if __name__ == "__main__":
    asyncio.run(main())
