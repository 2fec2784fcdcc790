"""Settings of a site with what startproject puts in, on the databases of the tests."""

from tests.settings import *  # noqa: F403  # and what a site has beside them
from tests.settings import DATABASES as TEST_DATABASES

# What a process of its own leaves in the server is told from what the tests leave.
DATABASES = {
    alias: {**conf, "OPTIONS": {**conf["OPTIONS"], "application_name": "pgbackend-requests"}}
    for alias, conf in TEST_DATABASES.items()
}
ALLOWED_HOSTS = ["testserver", "127.0.0.1"]
LOGIN_URL = "/login/"
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "tests.site.pages"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
            "loaders": [
                (
                    "django.template.loaders.locmem.Loader",
                    {
                        "groups.html": "{% for group in member.groups.all %}"
                        "{{ group.name }};{% endfor %}",
                        "word.html": "{{ word }}",
                        "login.html": "<form>{% csrf_token %}</form>",
                        "books.html": "{% for book in books %}{{ book.title }} by"
                        " {{ book.author.name }};{% endfor %}",
                    },
                ),
                "django.template.loaders.app_directories.Loader",
            ],
        },
    }
]
