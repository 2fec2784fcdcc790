"""Public: the pools that are open, for health checks and metrics.

``open_pools()`` returns those of the running event loop, ``open_pools(alias)`` those of one alias;
each has psycopg_pool's ``get_stats()``, ``name`` and ``max_size``.
"""

from .pool.open_pools import open_pools

__all__ = ["open_pools"]
