"""A small restaurant on pgbackend: dishes with stock, orders, and a kitchen that cooks them.

Start with `ordering.py`, where a transaction is awaited; then `views.py`, where relations are
followed in an asynchronous view and a synchronous one runs on the event loop; `board.py`, whose
streams hear of each commit; and `tests.py`. With `make run`, the same by hand:

    curl http://127.0.0.1:8000/api/dishes/

    curl http://127.0.0.1:8000/api/orders/ -H 'Content-Type: application/json' \\
         -d '{"customer": "Ada", "lines": [{"dish": 1, "quantity": 2}]}'

    curl http://127.0.0.1:8000/api/orders/1/

    curl http://127.0.0.1:8000/api/orders/?status=placed

    curl -X POST http://127.0.0.1:8000/api/orders/1/advance/ -H 'Content-Type: application/json'

    curl -N http://127.0.0.1:8000/board/events/
"""
