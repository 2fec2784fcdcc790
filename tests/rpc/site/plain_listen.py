"""``manage.py listen`` for the messages of the postgres transport, answered by `plain.handle`."""

import django
from django.core.management import call_command

django.setup()

if __name__ == "__main__":
    from pgbackend.rpc.transports import postgres_service
    from tests.rpc.site import plain

    postgres_service.serve("default", plain.handle)
    call_command("listen", channels=[postgres_service.RpcMessage.name()], concurrency=10)
