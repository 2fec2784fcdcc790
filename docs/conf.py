"""The pages, built by `make docs`."""

import runpy
from pathlib import Path

# Not imported: that would need psycopg's libpq.
_version = runpy.run_path(str(Path(__file__).parents[1] / "pgbackend" / "version.py"))

project = "pgbackend"
author = "the pgbackend authors"
release = version = _version["__version__"]

extensions = ["myst_parser"]
# Headings have the anchors that code hosts give them, to this depth.
myst_heading_anchors = 4

highlight_language = "python"

html_theme = "furo"
html_title = f"pgbackend {release}"
html_copy_source = False
