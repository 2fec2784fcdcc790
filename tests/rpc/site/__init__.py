"""A service for the tests of pgbackend.rpc: a small restaurant, and a table of all kinds."""
