"""The golden vectors, with their Python values. It imports nothing but the package's protocol."""

import json
import math
from base64 import b64decode
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any
from uuid import UUID

from pgbackend.rpc.protocol import nodes

HERE = Path(__file__).parent

# What the Python values of vectors are written with.
NAMES = {
    **{name: each for name, each in vars(nodes).items() if isinstance(each, type)},
    **{each.__name__: each for each in (date, datetime, time, timedelta, timezone, Decimal, UUID)},
    **{"UTC": UTC, "math": math, "ip_address": ip_address, "ip_interface": ip_interface},
}


def vectors(name: str) -> Any:
    """Return what the file *name*.json holds."""
    return json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))


def python_of(vector: dict[str, Any]) -> Any:
    """Return the Python value of *vector*."""
    return eval(vector["python"], dict(NAMES))


def wire_of(vector: dict[str, Any]) -> str | bytes:
    """Return the sealed text of *vector*: bytes where it is not UTF-8."""
    return b64decode(vector["wire_base64"]) if "wire_base64" in vector else str(vector["wire"])
