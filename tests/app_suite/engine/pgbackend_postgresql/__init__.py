"""This backend under a name that suites find which look for "postgresql" in an ENGINE."""
