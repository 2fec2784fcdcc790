"""The resources of one request, which end with it.

- `stalled`: clients that do not read the response.
- `serving`: runs each request in one bridge, with connection wrappers of its own.
"""
