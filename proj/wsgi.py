"""The WSGI application, on which the same ORM runs on Django's own synchronous path.

Two views need ASGI: the order page, which follows relations in a coroutine, and the board's events.
"""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "proj.settings")

application = get_wsgi_application()
