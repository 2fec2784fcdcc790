"""The parts of testing in the bridge, apart from the runner.

This room knows asyncio and unittest. Code that an application runs never imports it.

- `loops`: synchronous test code that runs a loop of its own, or asks whether one runs.
- `adopting`: which of the tasks that tests start are in a test's transaction.
- `leftovers`: tasks that a test leaves behind.
"""
