"""Messages for the service of the tests, and what comes of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from django.test import override_settings

from pgbackend.rpc.protocol import nodes
from pgbackend.rpc.protocol.answers import Answer, Outcome, open_answer
from pgbackend.rpc.protocol.messages import message_of, seal_message
from pgbackend.rpc.server import registry
from pgbackend.rpc.server.running import handle
from pgbackend.rpc.server.settings import service
from tests.settings import PGBACKEND_RPC

ROWS = nodes.Op("rows")


def op(called: str, /, *args: Any, **kwargs: Any) -> nodes.Op:
    return nodes.Op(called, args, kwargs)


def tree(model: str, *ops: nodes.Op, end: nodes.Op = ROWS, fields: Any = None) -> nodes.Tree:
    """Return a tree on a model of the tests' service, by its name alone or with its app's."""
    label = model if "." in model or not model else f"rpc_site.{model}"
    return nodes.Tree(label, ops, end, fields)


def q(*children: Any, connector: str = "and", negated: bool = False) -> nodes.Q:
    return nodes.Q(connector, children, negated)


def where(**paths: Any) -> nodes.Op:
    """Return a filter, as clients send it."""
    return op("filter", q(*paths.items()))


def sealed(*trees: nodes.Tree, principal: str | None = "chef", **options: Any) -> str:
    options.setdefault("timeout", 60.0)
    return seal_message(message_of(trees, principal=principal, **options), service().keys)


def answer_of(wire: str, **options: Any) -> Answer:
    return open_answer(handle(wire, **options), service().keys)


def outcomes(*trees: nodes.Tree, **options: Any) -> tuple[Outcome, ...]:
    answer = answer_of(sealed(*trees, **options))
    if answer.error is not None:
        raise answer.error
    return answer.outcomes


def ask(asked: nodes.Tree, **options: Any) -> Any:
    """Return the result of one tree; raise its error."""
    (outcome,) = outcomes(asked, **options)
    return outcome.result()


def code(asked: nodes.Tree, **options: Any) -> str | None:
    """Return the code of the error that a tree ends with; None if it has a result."""
    (outcome,) = outcomes(asked, **options)
    return outcome.error.code if outcome.error else None


def values(model: str, *ops: nodes.Op, path: str = "name", **options: Any) -> list[Any]:
    """Return the values of one path of the rows."""
    found = ask(tree(model, *ops, op("values_list", path, flat=True)), **options)
    return [row[0] for row in found.rows]


@contextmanager
def exposed(model: Any, **changed: Any) -> Iterator[None]:
    """Expose *model* otherwise for a while."""
    known = registry.exposure_of(model)
    registry.register(replace(known, **changed), anew=True)
    try:
        yield
    finally:
        registry.register(known, anew=True)


def limited(**limits: Any) -> Any:
    """Have the service of this process these limits for a while."""
    return override_settings(PGBACKEND_RPC={**PGBACKEND_RPC, "LIMITS": limits})
