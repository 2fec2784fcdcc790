"""What belongs to one request.

- `stalled`: clients that do not read what is sent to them.
"""
