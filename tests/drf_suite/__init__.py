"""Runs the test suite of Django REST framework on this backend, bridged or not; see README.md."""
