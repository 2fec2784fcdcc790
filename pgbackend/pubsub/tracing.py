"""OpenTelemetry, where the process has imported it: a handler's span is linked to the sender's.

A link, and not a child: the sender's trace has ended when the listener runs, maybe days ago.

https://opentelemetry.io/docs/specs/semconv/messaging/messaging-spans/
"""

from __future__ import annotations

import json
import sys
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

_TRACE = "opentelemetry.trace"
_NOTHING: AbstractContextManager[Any] = nullcontext()


def outgoing() -> str | None:
    """Return what names the running span, as JSON for the row; None: there is none."""
    if _TRACE not in sys.modules:
        return None
    headers: dict[str, str] = {}
    import_module("opentelemetry.propagate").inject(headers)
    return json.dumps(headers) if headers else None


def handling(channel: str, headers: str | None, attempts: int) -> AbstractContextManager[Any]:
    """Return a span for the listeners of one notification of *channel*.

    *headers* is what `outgoing` gave its sender, and *attempts* how many have failed before.
    """
    trace: Any = sys.modules.get(_TRACE)
    if trace is None:
        return _NOTHING
    links = []
    if headers:
        context = import_module("opentelemetry.propagate").extract(json.loads(headers))
        sender = trace.get_current_span(context)
        links.append(trace.Link(sender.get_span_context()))
    span: AbstractContextManager[Any] = trace.get_tracer("pgbackend.pubsub").start_as_current_span(
        f"process {channel}",
        kind=trace.SpanKind.CONSUMER,
        links=links,
        attributes={
            "messaging.system": "postgresql",
            "messaging.operation.type": "process",
            "messaging.destination.name": channel,
            "pgbackend.pubsub.attempt": attempts + 1,
        },
    )
    return span
