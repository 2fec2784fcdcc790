"""What tests need that run in the bridge, beside the runner.

This room knows asyncio and unittest. Nothing of an application's own run imports it.

- `loops`: synchronous test code that runs a loop of its own, or asks whether one runs.
- `adopting`: which of the tasks that tests start are in a test's transaction.
- `leftovers`: tasks that a test leaves behind.
"""
