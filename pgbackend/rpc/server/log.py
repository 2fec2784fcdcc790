"""The server's log: one record for each message, with what it asked and what came of it."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any

from ..protocol.answers import Outcome
from ..protocol.errors import RemoteError
from ..protocol.messages import Message

# A logger of its own. Its records have the fields of `Record.extra`.
logger = logging.getLogger("pgbackend.rpc.server.messages")


@dataclass
class Record:
    """What is logged of one message."""

    began: float = field(default_factory=time.monotonic)
    message: Message | None = None
    outcomes: tuple[Outcome, ...] = ()
    error: RemoteError | None = None
    rows: int = 0

    def write(self) -> None:
        """Log the message: INFO, or WARNING where it or one of its trees was refused or failed."""
        extra = self.extra()
        codes = extra["rpc_codes"]
        logger.log(
            logging.WARNING if any(codes) else logging.INFO,
            "%s for %s: %s: %s in %.1f ms, %d rows",
            extra["rpc_client"] or "unknown client",
            extra["rpc_principal"] or "nobody",
            ", ".join(f"{model} {end}" for model, end in _shown(extra["rpc_trees"])) or "no trees",
            ", ".join(sorted({code for code in codes if code})) or "ok",
            extra["rpc_duration"] * 1000,
            extra["rpc_rows"],
            extra=extra,
        )

    def extra(self) -> dict[str, Any]:
        """Return the fields of the record, beside logging's own; durations in seconds."""
        message = self.message
        client = message and message.client
        codes = [each.error.code if each.error else None for each in self.outcomes]
        if self.error is not None:
            codes = [self.error.code]
        return {
            "rpc_id": message and message.id,
            "rpc_key": message.key_id if message else self.error and self.error.key_id,
            "rpc_client": client and f"{client.name or client.host}[{client.process}]",
            "rpc_principal": message and message.principal,
            "rpc_trees": [(tree.model, tree.end.name) for tree in message.trees] if message else [],
            "rpc_codes": codes,
            "rpc_duration": time.monotonic() - self.began,
            "rpc_rows": self.rows,
        }


def _shown(trees: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the trees for the text: each kind once."""
    return sorted(set(trees))
