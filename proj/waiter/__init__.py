"""A waiter's terminal: a site without a database, whose models are those of the kitchen.

Start with `models.py`, then `views.py`. The site sends querysets as messages, and the kitchen runs
them, as far as `kitchen/rpc.py` exposes its models. With `make run` and `make run-waiter`:
http://127.0.0.1:8002/.
"""
