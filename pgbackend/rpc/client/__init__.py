"""The plain client: querysets of another service, where neither Django nor psycopg is installed."""
