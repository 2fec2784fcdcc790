"""A client of the service in tests/rpc/site: what a waiter sees of the restaurant."""
