"""`python -m proj <command>` does what manage.py does elsewhere."""

import os
import sys

from django.core.management import execute_from_command_line

from proj.postgres import ServerError


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "proj.settings")
    try:
        execute_from_command_line(["python -m proj", *sys.argv[1:]])
    except ServerError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
