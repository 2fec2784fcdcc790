"""A test case of unittest's own; Django cannot send it to another process."""

# ruff: noqa: PT009  # the assertions are those of Django's test cases

import asyncio
import unittest

from pgbackend import is_bridged


class IsolatedTests(unittest.IsolatedAsyncioTestCase):
    """unittest's own asynchronous test cases run as ever, each on a loop of its own."""

    async def asyncSetUp(self) -> None:
        self.loop = asyncio.get_running_loop()

    async def test_async(self) -> None:
        self.assertFalse(is_bridged())
        self.assertIs(self.loop, asyncio.get_running_loop())
        await asyncio.sleep(0)

    def test_sync(self) -> None:
        self.assertIsNot(self.loop, asyncio.get_running_loop())
