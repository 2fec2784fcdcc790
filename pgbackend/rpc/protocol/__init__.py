"""What travels: values, trees, sealed messages and answers. It needs neither Django nor psycopg.

docs/reference/rpc-message.md is the specification.

- `errors`: one class for each code.
- `limits`, `names`: how much a message may be, and which names it may use.
- `nodes`: querysets and expressions as plain data.
- `values`, `trees`: to JSON and back; `scalars`, `rows`, `forms`, `reading`, `writing` and
  `json_text` do the work.
- `keys`, `sealing`: the seal around a body.
- `messages`, `answers`: the bodies.
"""
