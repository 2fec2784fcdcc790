"""The ASGI application: `uvicorn proj.asgi:application`."""

import os

from django.conf import settings
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application

from pgbackend.asgi import LifespanApplication

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "proj.settings")

application = get_asgi_application()
if settings.DEBUG:
    # What runserver does by itself.
    application = ASGIStaticFilesHandler(application)
# The pool is open when the first request comes, and closes after the last. Between the two the
# listeners of channels run here too, as `python -m proj listen` runs them elsewhere.
application = LifespanApplication(application, listen=True)
