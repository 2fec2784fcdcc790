"""The ASGI application of the service of the tests."""

from django.core.asgi import get_asgi_application

from pgbackend.asgi import LifespanApplication

application = LifespanApplication(get_asgi_application())
