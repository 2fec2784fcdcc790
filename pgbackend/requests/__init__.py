"""What belongs to one request, and ends with it.

- `stalled`: clients that do not read what is sent to them.
- `serving`: a request is one bridge, with connection wrappers of its own.
"""
