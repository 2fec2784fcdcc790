"""What Django compiles, kept and sent in one hop.

This room knows Django's queries and compilers, but not its connection wrapper.

- `originals`: whether nobody but Django has a hand in how something is compiled.
- `select_lists`, `statement_cache`: what is compiled once.
- `instrumented`: whether nobody looks at how a statement is sent.
- `direct`: the short way of the ORM's own statements.
"""
