"""Every change to Django and other packages, one file for each subject.

- `apply`: applies them all, once.
- `import_hooks`: calls back when a module is imported.
- `early`: what was taken from Django before they were applied.
- `where_to_run`: which of Django's calls of ``sync_to_async`` run on the event loop.
- `guards`: ``async_unsafe``, looked through in the bridge.
- `atomic`, `atomic_ends`, `atomic_awaited`, `atomic_decorated`: blocks of ``atomic`` in turns,
  their ends, ``async with``, and the decorator.
- `iterators`, `evaluation`: ``aiterator()``, and querysets that several tasks evaluate.
- `toolbar`, `context_locals`: other packages that keep what belongs to a request by thread.
"""
