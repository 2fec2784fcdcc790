"""`python -m proj.waiter.serve` serves the waiter's terminal; `make run-waiter` calls it."""

import os
import sys

import django
import uvicorn
from django.core.exceptions import ImproperlyConfigured

from proj import postgres
from proj.environment import STATE_DIR
from proj.serve import listen, stop_on_sigterm

ADDRESSES = """
  Menu    http://{host}:{port}/
  Orders  http://{host}:{port}/orders/

What they show comes from the kitchen, which `make run` serves. Ctrl-C stops the terminal.
"""


def main() -> None:
    listener = listen(os.environ.get("PORT", "8002"), "make run-waiter PORT=8003")
    stop_on_sigterm()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "proj.waiter.settings")
    try:
        try:
            django.setup()
            host, port = listener.getsockname()
            print(ADDRESSES.format(host=host, port=port), flush=True)
            config = uvicorn.Config(
                "proj.waiter.asgi:application",
                lifespan="off",
                timeout_keep_alive=60,
                timeout_graceful_shutdown=5,
            )
            uvicorn.Server(config).run(sockets=[listener])
        finally:
            postgres.stop(STATE_DIR)
    except (postgres.ServerError, ImproperlyConfigured) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit()


if __name__ == "__main__":
    main()
