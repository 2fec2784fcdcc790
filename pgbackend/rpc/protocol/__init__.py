"""What travels: values, trees, sealed messages and answers. It needs neither Django nor psycopg.

docs/reference/rpc-message.md is the specification.
"""
