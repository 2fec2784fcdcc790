"""Print `pgbackend.known_sources.KNOWN` anew: ``python -m tests.fingerprints [PLACE ...]``.

For each release of the supported lines, downloaded by pip, each place's fingerprint is computed
in a process of its own. Places are those of `KNOWN`, of `RELIED_ON` and the arguments:
``module:sync_to_async`` for a module's calls, ``module.Class.function`` for a function. Needs the
newest Python that those releases support.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections import defaultdict
from importlib import import_module
from pathlib import Path

LINES = {
    "django": ("5.2", "6.0", "6.1"),
    "asgiref": ("3.12", "3.13"),
}
ROOT = Path(__file__).resolve().parents[1]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def measure(places: list[str]) -> None:
    """Print the fingerprints of *places* in the Django of this process, as JSON."""
    import django
    from django.conf import settings

    settings.configure(
        INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth"], SECRET_KEY="-"
    )
    django.setup()
    from pgbackend import fingerprints

    values = {}
    for place in places:
        module, _, calls = place.partition(":")
        if calls:
            try:
                imported = import_module(module)
            except ModuleNotFoundError as error:
                # A later line's.
                if not module.startswith(str(error.name)):
                    raise
                continue
            if hasattr(imported, "sync_to_async"):
                values[place] = fingerprints.fingerprint_of_calls(imported)
            continue
        imported = import_module(".".join(re.findall(r"\b[a-z]\w*(?=\.)", module)))
        values[place] = fingerprints.fingerprint(fingerprints.find(place, imported))
    print(json.dumps(values))


def releases(package: str) -> list[str]:
    """Return all releases of the supported lines of *package*, oldest first."""
    listed = subprocess.run(
        [*PIP, "index", "versions", package], check=True, capture_output=True, text=True
    ).stdout
    found = set(re.findall(r"\d+\.\d+(?:\.\d+)?(?=[,\s)])", listed))
    found = {each for each in found if line_of(each) in LINES[package]}
    return sorted(found, key=lambda each: [int(part) for part in each.split(".")])


def line_of(release: str) -> str:
    return ".".join(release.split(".")[:2])


def main(places: list[str]) -> None:
    from pgbackend import fingerprints

    places = sorted({*fingerprints.KNOWN, *fingerprints.RELIED_ON, *places})
    print("KNOWN: dict[str, frozenset[str]] = {")
    for package in sorted(LINES):
        of_package = [each for each in places if each.startswith(f"{package}.")]
        for place, values in known(package, of_package).items():
            print(f'    "{place}": frozenset(\n        {{')
            for value, having in values.items():
                print(f'            "{value}",  # {ranges(package, having)}')
            print("        }\n    ),")
    print("}")


def known(package: str, places: list[str]) -> dict[str, dict[str, list[str]]]:
    """Return for each of the *places* its fingerprints, each with the releases that have it."""
    found: dict[str, dict[str, list[str]]] = {place: defaultdict(list) for place in places}
    for release in releases(package):
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(
                [*PIP, "download", "-q", "--no-deps", "--dest", folder, f"{package}=={release}"],
                check=True,
            )
            (wheel,) = Path(folder).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder)
            measured = subprocess.run(
                [sys.executable, __file__, "--measure", *places],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([folder, str(ROOT)])},
            ).stdout
        for place, value in json.loads(measured).items():
            found[place][value].append(release)
    return found


def ranges(package: str, having: list[str]) -> str:
    """Return releases of *package* as the first and the last of each line."""
    spans = []
    for line in LINES[package]:
        of_line = [each for each in having if line_of(each) == line]
        if of_line:
            spans.append(of_line[0] if len(of_line) == 1 else f"{of_line[0]} to {of_line[-1]}")
    return ", ".join(spans)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2:])
    else:
        main(sys.argv[1:])
