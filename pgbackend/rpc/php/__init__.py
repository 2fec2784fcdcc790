"""The client for PHP, one file."""
