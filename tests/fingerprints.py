"""Print `pgbackend.fingerprints.KNOWN` anew: ``python -m tests.fingerprints [PLACE ...]``.

For each release of the supported lines, downloaded by pip, each place's fingerprint is computed
in a process of its own. Places are those of `KNOWN` and the arguments: ``module:sync_to_async``
for a module's calls, ``module.Class.function`` for a function. Needs the newest Python that
those releases support.
"""

from __future__ import annotations

import importlib.util
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
from typing import Any

LINES = ("5.2", "6.0", "6.1")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
SOURCE = Path(__file__).resolve().parents[1] / "pgbackend" / "fingerprints.py"


def load() -> Any:
    """Return the fingerprints module without the package, which would patch what it looks at."""
    spec = importlib.util.spec_from_file_location("fingerprints", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def measure(places: list[str]) -> None:
    """Print the fingerprints of *places* in the Django of this process, as JSON."""
    import django
    from django.conf import settings

    settings.configure(
        INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth"], SECRET_KEY="-"
    )
    django.setup()
    fingerprints = load()
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
        function: Any = import_module(".".join(re.findall(r"\b[a-z_]+(?=\.)", module)))
        for name in module.removeprefix(f"{function.__name__}.").split("."):
            function = getattr(function, name)
        values[place] = fingerprints.fingerprint(function)
    print(json.dumps(values))


def releases() -> list[str]:
    """Return all releases of the supported lines, oldest first."""
    listed = subprocess.run(
        [*PIP, "index", "versions", "django"], check=True, capture_output=True, text=True
    ).stdout
    found = set(re.findall(r"\d+\.\d+(?:\.\d+)?(?=[,\s)])", listed))
    found = {each for each in found if each.startswith(LINES)}
    return sorted(found, key=lambda each: [int(part) for part in each.split(".")])


def main(places: list[str]) -> None:
    places = sorted({*load().KNOWN, *places})
    known: dict[str, dict[str, list[str]]] = {place: defaultdict(list) for place in places}
    for release in releases():
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run(
                [*PIP, "download", "--quiet", "--no-deps", "--dest", folder, f"django=={release}"],
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
                env={**os.environ, "PYTHONPATH": folder},
            ).stdout
        for place, value in json.loads(measured).items():
            known[place][value].append(release)
    print("KNOWN: dict[str, frozenset[str]] = {")
    for place, values in known.items():
        print(f'    "{place}": frozenset(\n        {{')
        for value, having in values.items():
            print(f'            "{value}",  # {ranges(having)}')
        print("        }\n    ),")
    print("}")


def ranges(having: list[str]) -> str:
    """Return releases as the first and the last of each line."""
    spans = []
    for line in LINES:
        of_line = [each for each in having if each.startswith(line)]
        if of_line:
            spans.append(of_line[0] if len(of_line) == 1 else f"{of_line[0]} to {of_line[-1]}")
    return ", ".join(spans)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2:])
    else:
        main(sys.argv[1:])
