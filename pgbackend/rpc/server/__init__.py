"""The service: what it exposes, and how a message is checked and run."""
