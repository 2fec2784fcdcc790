"""Every change to Django and other packages, one file for each subject.

- `apply`: applies them all, once.
- `import_hooks`: calls back when a module is imported; `early`: what was there before.
- `where_to_run`, `aliases`, `a_methods`: which of Django's calls of ``sync_to_async`` run on the
  event loop, which databases they will use, and what takes their place.
- `guards`: ``async_unsafe``, looked through in the bridge.
- `atomic`: what is replaced of ``atomic``; `atomic_blocks`, `atomic_ends`, `atomic_awaited` and
  `atomic_decorated`: its blocks in turns, their ends, ``async with``, and the decorator.
- `iterators`, `evaluation`: ``aiterator()``, and querysets that several tasks evaluate.
- `handlers`, `error_mails`: requests of Django's, and mails about their errors.
- `asgiref`, `threads`: ``async_to_sync`` in the bridge, and calls in threads.
- `log_handlers`: handlers of logging that wait in the bridge.
- `toolbar`, `history`, `context_locals`: packages that keep by thread what belongs to a request.
"""
