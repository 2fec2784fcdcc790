"""Compiling and sending: statements are kept once compiled, and sent in one exchange.

This room knows Django's queries and compilers, but not its connection wrapper.

- `originals`: whether only Django's own code takes part in compiling.
- `select_lists`, `statement_cache`: select lists and statements that are compiled once.
- `selections`: what queries select that is not all columns.
- `query_attributes`: the attributes of queries that a statement may depend on.
- `instrumented`: whether any other code takes part in sending statements.
- `direct`: the short way of the ORM's own statements.
- `together`: the statements of several calls, sent in one message.
- `in_threads`: the short way for such calls in a thread.
"""
