"""Every change to Django and other packages, one file for each subject.

- `apply`: applies them all, once.
- `import_hooks`: callbacks when a module is imported; `early`: things made before the patches.
- `where_to_run`, `aliases`, `a_methods`: which of Django's calls of ``sync_to_async`` run on the
  event loop, which databases they will use, and how they run there.
- `guards`: ``async_unsafe``, which lets calls in the bridge pass.
- `atomic`: the replaced methods of ``atomic``; `atomic_blocks`, `atomic_ends`, `atomic_awaited` and
  `atomic_decorated`: its blocks in turns, their ends, ``async with``, and the decorator.
- `iterators`, `evaluation`: ``aiterator()``, and querysets that several tasks evaluate.
- `handlers`, `error_mails`: Django's requests, and mails about their errors.
- `asgiref`, `threads`: ``async_to_sync`` in the bridge, and calls in threads.
- `log_handlers`: logging handlers that wait in the bridge.
- `toolbar`, `history`, `context_locals`: packages that keep a request's data by thread.
"""
