"""What a test run in the bridge changes in asyncio and unittest, so that test code works in it.

This room knows asyncio and unittest. Code that an application runs never imports it.
`runner.Runner` uses it; `test` and `pytest_plugin` are the doors for Django's test runner and for
pytest.

- `loops`: synchronous test code that runs a loop of its own, or asks whether one runs.
- `tests_transaction`: which of the tasks that tests start are in a test's transaction.
- `leftovers`: tasks that a test leaves behind.
"""
