"""Runs the test suites of other packages on Django's backend and on this one; see README.md."""
