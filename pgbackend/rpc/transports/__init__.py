"""How messages and answers travel."""
