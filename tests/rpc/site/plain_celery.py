"""A Celery application whose workers answer by `plain.handle`."""

from pgbackend.rpc.transports.celery_service import make_app
from tests.rpc.site import plain

app = make_app(plain.handle)
