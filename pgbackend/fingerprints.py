"""Fingerprints of the places in Django that `patches` changes, for the supported versions.

`patches.fingerprint` and `patches.fingerprint_of_calls` compute them; the comments name the
first and the last release of each line that has a value.
"""

KNOWN: dict[str, frozenset[str]] = {
    "django.contrib.contenttypes.fields:sync_to_async": frozenset(
        {
            "5b84d006fc41",  # 5.2.19, 6.0.10, 6.1.3
        }
    ),
    "django.contrib.sessions.backends.db:sync_to_async": frozenset(
        {
            "f09089ad9afc",  # 5.2.19, 6.0.10, 6.1.3
        }
    ),
    "django.core.cache.backends.base:sync_to_async": frozenset(
        {
            "b83cd4aa732f",  # 5.2.19, 6.0.10
            "c4e537b3f074",  # 6.1.3
        }
    ),
    "django.db.models.base:sync_to_async": frozenset(
        {
            "ab7363a9ff30",  # 5.2.19, 6.0.10, 6.1.3
        }
    ),
    "django.db.models.fields.related_descriptors:sync_to_async": frozenset(
        {
            "57f257702036",  # 5.2.19, 6.0.10, 6.1.3
        }
    ),
    "django.db.models.query.BaseIterable._async_generator": frozenset(
        {
            "57fdfb06f61f",  # 5.2.19, 6.0.10, 6.1.3
        }
    ),
    "django.db.models.query:sync_to_async": frozenset(
        {
            "6ae6bc589750",  # 5.2.19, 6.0.10, 6.1.3
        }
    ),
    "django.db.transaction.Atomic.__enter__": frozenset(
        {
            "87b565ef0b68",  # 5.2.19, 6.0.10, 6.1.3
        }
    ),
    "django.db.transaction.Atomic.__exit__": frozenset(
        {
            "1e1d49ab612a",  # 5.2.19
            "73d934953258",  # 6.0.10, 6.1.3
        }
    ),
    "django.dispatch.dispatcher:sync_to_async": frozenset(
        {
            "004132bdaf84",  # 5.2.19, 6.0.10
            "e6ef8963f8a9",  # 6.1.3
        }
    ),
}
