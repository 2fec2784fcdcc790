"""Tests of pgbackend.pubsub: they need django-pgtrigger, which is in the extra "dev"."""

import importlib.util

if importlib.util.find_spec("pgtrigger") is None:
    collect_ignore_glob = ["*"]
