"""The names of channels on the wire, and those that django-pgpubsub gave them.

A name is at most 47 bytes of ``[a-z0-9_]``: PostgreSQL would take 63, and django-pgtrigger takes 47
for the name of a trigger, for which projects use it, too. Without capitals it needs no quotes. It
has 64 bits of a hash. django-pgpubsub's names have 20: 1,880 were enough for two to be the same.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

PREFIX = "pgpubsub_"
LONGEST = 47


# A sender asks for each message.
@lru_cache(maxsize=10_000)
def wire_name(dotted: str) -> str:
    """Return the name for LISTEN and NOTIFY of the channel class with the *dotted* path."""
    digest = hashlib.sha256(dotted.encode()).hexdigest()[:16]
    class_name = re.sub(r"[^A-Za-z0-9_]", "_", dotted.rpartition(".")[2]).lower()
    return f"{PREFIX}{class_name[: LONGEST - len(PREFIX) - 17]}_{digest}"


def old_name(dotted: str) -> str:
    """Return the name that django-pgpubsub gave the channel class with the *dotted* path.

    Triggers that it made send under this name until the project's next migration replaces them.
    """
    return f"{PREFIX}{hashlib.sha1(dotted.encode(), usedforsecurity=False).hexdigest()[:5]}"
