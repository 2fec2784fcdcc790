"""Runs Django's own test suite on this backend, in the bridge or plainly; see README.md."""
