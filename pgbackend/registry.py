"""Public: the open pools, for health checks and metrics.

``open_pools()`` returns the pools of the running event loop, ``open_pools(alias)`` only those of
one alias. Each pool has psycopg_pool's ``get_stats()``, ``name`` and ``max_size``.
"""

from .pool.open_pools import open_pools

__all__ = ["open_pools"]
