"""The fingerprints of functions in all supported releases of Django and asgiref.

`KNOWN` names for each place and each value of its fingerprint the first and the last release, of
each line, that has the value. ``python -m tests.fingerprints`` prints the table anew. What a place
is, and how the table is used, is in `fingerprints`.
"""

from __future__ import annotations

KNOWN: dict[str, frozenset[str]] = {
    "asgiref.current_thread_executor.CurrentThreadExecutor": frozenset(
        {
            "a14b8ffc88ae",  # 3.12.0 to 3.12.1, 3.13.0
        }
    ),
    "asgiref.sync.AsyncToSync.__call__": frozenset(
        {
            "a54f6cf53e02",  # 3.12.0 to 3.12.1, 3.13.0
        }
    ),
    "asgiref.sync.SyncToAsync.__call__": frozenset(
        {
            "48735fc743e5",  # 3.12.0
            "67e564c3708a",  # 3.12.1
            "7ded92808f5e",  # 3.13.0
        }
    ),
    "asgiref.sync.SyncToAsync.thread_handler": frozenset(
        {
            "1f3fa44107dc",  # 3.12.0 to 3.12.1, 3.13.0
        }
    ),
    "asgiref.sync.ThreadSensitiveContext.__aexit__": frozenset(
        {
            "9b310e17aabf",  # 3.12.0 to 3.12.1
            "5e9212deb568",  # 3.13.0
        }
    ),
    "asgiref.sync._restore_context": frozenset(
        {
            "01c1a61c4c36",  # 3.12.0 to 3.12.1
            "454199cd7976",  # 3.13.0
        }
    ),
    "django.contrib.auth.backends:sync_to_async": frozenset(
        {
            "b24949c71814",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.contrib.auth.decorators:sync_to_async": frozenset(
        {
            "d944490b62cc",  # 5.2 to 5.2.19, 6.0 to 6.0.10
            "7f7ff735909f",  # 6.1 to 6.1.3
        }
    ),
    "django.contrib.contenttypes.fields:sync_to_async": frozenset(
        {
            "5b84d006fc41",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.contrib.sessions.backends.base:sync_to_async": frozenset(
        {
            "4b18eecffcc7",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.contrib.sessions.backends.db.SessionStore.asave": frozenset(
        {
            "7b66105ee365",  # 5.2 to 5.2.19, 6.0 to 6.0.7
            "8389dbfde894",  # 6.0.8 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.contrib.sessions.backends.db:sync_to_async": frozenset(
        {
            "f09089ad9afc",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.core.cache.backends.base:sync_to_async": frozenset(
        {
            "b83cd4aa732f",  # 5.2 to 5.2.19, 6.0 to 6.0.10
            "c4e537b3f074",  # 6.1 to 6.1.3
        }
    ),
    "django.core.handlers.asgi.ASGIHandler.handle": frozenset(
        {
            "43d55543bc51",  # 5.2 to 5.2.19, 6.0 to 6.0.10
            "28ca198ba465",  # 6.1 to 6.1.3
        }
    ),
    "django.core.handlers.asgi.ASGIHandler.listen_for_disconnect": frozenset(
        {
            "093bdc9b146e",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.core.handlers.asgi.ASGIHandler.read_body": frozenset(
        {
            "ebe87ae94083",  # 5.2 to 5.2.19
            "d93eaa5475cb",  # 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.core.handlers.asgi.ASGIHandler.run_get_response": frozenset(
        {
            "ef43b62a0405",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.core.handlers.asgi.ASGIHandler.send_response": frozenset(
        {
            "a7f0ada5440e",  # 5.2 to 5.2.19
            "950d25c83065",  # 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.core.handlers.asgi:sync_to_async": frozenset(
        {
            "def3a9162743",  # 5.2 to 5.2.19
            "3713c25bf5fb",  # 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.core.handlers.base.BaseHandler.adapt_method_mode": frozenset(
        {
            "f337642a42e7",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.core.handlers.base.BaseHandler.make_view_atomic": frozenset(
        {
            "b02367b91c01",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.core.handlers.base:sync_to_async": frozenset(
        {
            "435f8e6ad0f6",  # 5.2 to 5.2.19, 6.0 to 6.0.10
            "928eddf385cc",  # 6.1 to 6.1.3
        }
    ),
    "django.core.handlers.exception:sync_to_async": frozenset(
        {
            "af6d30b7cb18",  # 5.2 to 5.2.19, 6.0 to 6.0.10
            "b361c7e77686",  # 6.1 to 6.1.3
        }
    ),
    "django.core.paginator:sync_to_async": frozenset(
        {
            "7ff21df91837",  # 6.0 to 6.0.10
            "1909b9e869c6",  # 6.1 to 6.1.3
        }
    ),
    "django.db.models.base:sync_to_async": frozenset(
        {
            "ab7363a9ff30",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.db.models.fields.related_descriptors:sync_to_async": frozenset(
        {
            "57f257702036",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.db.models.query.BaseIterable.__aiter__": frozenset(
        {
            "d3e2638a4fbc",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.db.models.query.BaseIterable._async_generator": frozenset(
        {
            "57fdfb06f61f",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.db.models.query.QuerySet._fetch_all": frozenset(
        {
            "17d4d58f9723",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.db.models.query.QuerySet._prefetch_related_objects": frozenset(
        {
            "a9bb2ffdee23",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.db.models.query.QuerySet.aiterator": frozenset(
        {
            "cbd61ed6dda3",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.db.models.query.RawQuerySet._fetch_all": frozenset(
        {
            "4a59cbf3b810",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.db.models.query.RawQuerySet._prefetch_related_objects": frozenset(
        {
            "1dda6d38cb17",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.db.models.query.RawQuerySet.iterator": frozenset(
        {
            "a98ea6a762e9",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.db.models.query:sync_to_async": frozenset(
        {
            "6ae6bc589750",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.db.models.sql.compiler.SQLCompiler.as_sql": frozenset(
        {
            "4bab55cfa827",  # 5.2 to 5.2.19
            "4db3ac447562",  # 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.db.models.sql.compiler.SQLCompiler.execute_sql": frozenset(
        {
            "84d39406e87c",  # 5.2 to 5.2.19, 6.0 to 6.0.10
            "e227af149642",  # 6.1 to 6.1.3
        }
    ),
    "django.db.models.sql.compiler.SQLCompiler.get_select": frozenset(
        {
            "7d6abee322e0",  # 5.2
            "60c3d0376504",  # 5.2.1 to 5.2.19, 6.0 to 6.0.10
            "28d232ad0723",  # 6.1 to 6.1.3
        }
    ),
    "django.db.models.sql.compiler.SQLInsertCompiler.execute_sql": frozenset(
        {
            "279979b5cb4a",  # 5.2 to 5.2.19
            "d17d6705a773",  # 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.db.models.sql.compiler.SQLUpdateCompiler.as_sql": frozenset(
        {
            "0b91f8767413",  # 5.2 to 5.2.19
            "f1e83baf2158",  # 6.0 to 6.0.10
            "b5ed141de152",  # 6.1 to 6.1.3
        }
    ),
    "django.db.transaction.Atomic.__enter__": frozenset(
        {
            "87b565ef0b68",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.db.transaction.Atomic.__exit__": frozenset(
        {
            "1e1d49ab612a",  # 5.2 to 5.2.19
            "73d934953258",  # 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.db.utils.ConnectionRouter._router_func": frozenset(
        {
            "7804c8a97abc",  # 5.2 to 5.2.19
            "b2cf32c4e53e",  # 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.dispatch.dispatcher.Signal._live_receivers": frozenset(
        {
            "81fb8e976567",  # 5.2 to 5.2.19
            "e43e82e15d7d",  # 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.dispatch.dispatcher.Signal.asend": frozenset(
        {
            "50ab35fac684",  # 5.2 to 5.2.19, 6.0 to 6.0.10
            "c02ad055ccfd",  # 6.1 to 6.1.3
        }
    ),
    "django.dispatch.dispatcher.Signal.asend_robust": frozenset(
        {
            "bee86d0fd6f8",  # 5.2 to 5.2.19
            "12e78d65b87b",  # 6.0 to 6.0.10
            "12f0c675afaa",  # 6.1 to 6.1.3
        }
    ),
    "django.dispatch.dispatcher:sync_to_async": frozenset(
        {
            "004132bdaf84",  # 5.2 to 5.2.19, 6.0 to 6.0.10
            "e6ef8963f8a9",  # 6.1 to 6.1.3
        }
    ),
    "django.http.response:sync_to_async": frozenset(
        {
            "d754cbb920ff",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.tasks.backends.base:sync_to_async": frozenset(
        {
            "5d6a348ff655",  # 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.test.client.AsyncClientHandler.__call__": frozenset(
        {
            "adf2bfd9e8ac",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.test.client:sync_to_async": frozenset(
        {
            "2228c91f7755",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.urls.resolvers.URLResolver.resolve_error_handler": frozenset(
        {
            "52d2ce21db1a",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.utils.asyncio.async_unsafe": frozenset(
        {
            "1757d3b70a6d",  # 5.2 to 5.2.19, 6.0 to 6.0.10, 6.1 to 6.1.3
        }
    ),
    "django.utils.deprecation:sync_to_async": frozenset(
        {
            "d03aa5fe7f02",  # 5.2 to 5.2.19, 6.0 to 6.0.10
            "2d86c307d24c",  # 6.1 to 6.1.3
        }
    ),
    "django.utils.log.AdminEmailHandler.emit": frozenset(
        {
            "2f22d40e1c7d",  # 5.2 to 5.2.19, 6.0 to 6.0.10
            "dd657f2668f3",  # 6.1 to 6.1.3
        }
    ),
}
