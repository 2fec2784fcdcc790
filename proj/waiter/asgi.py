"""The ASGI application: `uvicorn proj.waiter.asgi:application`."""

import os

from django.conf import settings
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "proj.waiter.settings")

application = get_asgi_application()
if settings.DEBUG:
    # What runserver does by itself.
    application = ASGIStaticFilesHandler(application)
