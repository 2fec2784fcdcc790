"""The virtual environments of the peers: one each, with the versions of `requirements/`."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
_REQUIREMENTS = Path(__file__).with_name("requirements")


def python(environment: str) -> Path:
    """Return the interpreter of an environment, made and brought up to date if need be.

    Raise SystemExit with pip's words if it cannot be.
    """
    folder = ROOT / f".venv-bench-{environment}"
    interpreter = folder / "bin" / "python"
    stamp = folder / "installed"
    wanted = _fingerprint(environment)
    if stamp.exists() and stamp.read_text() == wanted:
        return interpreter
    print(f"Installing {folder.name}", flush=True)
    _run([sys.executable, "-m", "venv", "--clear", str(folder)])
    pip = [str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "--requirement", str(_REQUIREMENTS / f"{environment}.txt")])
    if environment == "pgbackend":
        _run([*pip, "--no-deps", "--editable", str(ROOT)])
    stamp.write_text(wanted)
    return interpreter


def versions() -> dict[str, str]:
    """Return the versions that the requirements of all environments name."""
    lines = "\n".join(file.read_text() for file in sorted(_REQUIREMENTS.glob("*.txt")))
    return dict(re.findall(r"^([\w.-]+)(?:\[\w+\])?==([\w.]+)", lines, re.MULTILINE))


def commit() -> str:
    """Return what of our own is measured: the commit, and whether files differ from it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    return done.stdout.strip()


def _fingerprint(environment: str) -> str:
    files = [_REQUIREMENTS / f"{environment}.txt", _REQUIREMENTS / "django.txt"]
    content = b"".join(file.read_bytes() for file in files)
    return f"{sys.version} {hashlib.sha256(content).hexdigest()}"


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stdout}")
