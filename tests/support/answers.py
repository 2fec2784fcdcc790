"""What requests to the tests' site have written, and have seen of each other."""

from __future__ import annotations

import asyncio

import httpx

from tests.support.client import Client
from tests.support.server import Server


def written(server: Server) -> tuple[int, int]:
    """Return how many rows the views have committed in the first and the second database."""
    elsewhere = server.other.execute("SELECT count(*) FROM tests_elsewhere").fetchall()[0][0]
    return server.one("SELECT count(*) FROM tests_author"), elsewhere


async def meet_in(
    client: Client | httpx.AsyncClient, address: str, meeting: str
) -> list[list[str]]:
    """Let three requests run side by side and return the names that each has seen."""
    names = ("Ada", "Grace", "Edith")
    query = f"parties={len(names)}&meeting={meeting}"
    answers = await asyncio.gather(
        *(client.get(f"{address}?{query}&name={name}") for name in names)
    )
    return [answer.json()["names"] for answer in answers]


def found(server: Server) -> list[str]:
    """Return the addresses of the views that wrote when they were cancelled."""
    return [name for (name,) in server.all("SELECT name FROM tests_author ORDER BY id")]
