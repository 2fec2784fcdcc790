"""What an alias of a service has in a process: the transport, the keys, and how calls are sent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cache
from importlib import import_module
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string

from .protocol import nodes
from .protocol.answers import open_answer
from .protocol.errors import BadValue, RemoteError
from .protocol.keys import Keys
from .protocol.limits import Limits
from .protocol.messages import Message, message_of, seal_message
from .results import Reference, RpcFuture
from .transports.base import Transport, send_message

# Values in which there is no reference.
_LEAVES = frozenset({str, int, float, bool, bytes, type(None)})

# Seconds until the deadline of a message, where DATABASES names none.
TIMEOUT = 10.0

TRANSPORTS = ("local", "celery", "postgres", "http")


class Service:
    """The way to one service, used by all threads and event loops of the process."""

    def __init__(self, alias: str, settings: Mapping[str, Any]) -> None:
        self.alias = alias
        self.timeout = _timeout(alias, settings)
        self.principal: str | None = settings.get("PRINCIPAL")
        self.client: str | None = settings.get("CLIENT")
        make = _transport(alias, settings)
        self.keys = _keys(alias, settings)
        self.limits = _limits(alias, settings)
        self.transport = make()

    def __repr__(self) -> str:
        return f"<Service {self.alias!r} by {type(self.transport).__name__}>"

    def send(
        self,
        futures: Iterable[RpcFuture[Any]],
        *,
        atomic: bool = False,
        dry: bool = False,
        within: float | None = None,
        idempotency: str | None = None,
    ) -> Message | None:
        """Send calls that were claimed, in one message; return it, or None where it was not sent.

        Each future ends with its own outcome. What a call refers to goes before it.
        """
        batch = _Batch(self.alias)
        for each in futures:
            batch.add(each)
        if not batch.futures:
            return None
        limits = [each.within for each in batch.futures if each.within is not None]
        seconds = within or (min(limits) if limits else self.timeout)
        try:
            message = message_of(
                batch.trees,
                timeout=seconds,
                principal=self.principal,
                name=self.client,
                atomic=atomic,
                dry=dry,
                idempotency=idempotency,
            )
            wire = seal_message(message, self.keys, self.limits)
        except RemoteError as error:
            batch.fail(error)
            return None
        urgent = any(each.urgent for each in batch.futures)
        sent = send_message(self.transport, message, wire, urgent=urgent)
        batch.sent = sent

        def answered(sent: Any) -> None:
            self._answered(sent, batch, message)

        if sent.done():
            answered(sent)
        else:
            sent.add_done_callback(answered)
        return message

    def _answered(self, sent: Any, batch: _Batch, message: Message) -> None:
        """End the futures of *batch* by the answer."""
        if sent.cancelled():
            for each in batch.futures:
                each.set_cancelled()
            return
        error = sent.exception()
        if error is not None:
            batch.fail(error)
            return
        try:
            answer = open_answer(sent.result(), self.keys, self.limits, message.id)
        except RemoteError as found:
            batch.fail(found)
            return
        if answer.error is not None:
            batch.fail(answer.error)
            return
        if len(answer.outcomes) != len(batch.futures):
            batch.fail(BadValue("the answer has not one outcome for each call"))
            return
        for future, outcome in zip(batch.futures, answer.outcomes, strict=True):
            if outcome.error is not None:
                future.set_exception(future.failed(outcome.error))
                continue
            try:
                made = future.convert(outcome.value)
            except Exception as found:
                future.set_exception(found)
            else:
                future.set_result(made)


class _Batch:
    """The calls of one message, each after those that it refers to."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self.futures: list[RpcFuture[Any]] = []
        self.trees: list[nodes.Tree] = []
        self._places: dict[int, int] = {}
        # The transport's future, so that a lone call can be cancelled.
        self.sent: Any = None

    def add(self, future: RpcFuture[Any]) -> None:
        if future.database != self.alias:
            raise ValueError(
                f"a call of {future.database!r} cannot be in a message to {self.alias!r}: a"
                " message goes to one service"
            )
        if id(future) in self._places:
            return
        tree = replaced(future.tree, self._referred)
        self._places[id(future)] = len(self.futures)
        self.futures.append(future)
        self.trees.append(tree)
        future.batch = self

    def _referred(self, reference: Reference) -> Any:
        """Return what stands for *reference* in the message: its value where that is known."""
        future = reference.future
        if id(future) not in self._places:
            if future.done():
                from .recording import recorded

                return recorded(reference.value())
            if future.claim() is None:
                # It was sent before this one: its result comes first, or never.
                from .recording import recorded

                return recorded(reference.value())
            self.add(future)
        return nodes.Ref(self._places[id(future)], reference.path)

    def fail(self, error: BaseException) -> None:
        for each in self.futures:
            each.set_exception(each.failed(error))

    def cancel(self) -> None:
        """Cancel a message of one call; others go on for their own callers."""
        if len(self.futures) == 1 and self.sent is not None:
            self.sent.cancel()


def replaced(value: Any, by: Callable[[Reference], Any]) -> Any:
    """Return *value*, a tree or a part of one, with its references replaced."""
    kind: Any = type(value)
    if kind in _LEAVES:
        return value
    if isinstance(value, tuple):
        # Most trees have no reference, and are left as they are.
        for number, each in enumerate(value):
            made = replaced(each, by)
            if made is not each:
                rest = (replaced(other, by) for other in value[number + 1 :])
                return (*value[:number], made, *rest)
        return value
    if isinstance(value, Reference):
        return by(value)
    names = _parts(kind)
    if names:
        new = {}
        for name in names:
            old = getattr(value, name)
            made = replaced(old, by)
            if made is not old:
                new[name] = made
        return replace(value, **new) if new else value
    if isinstance(value, list):
        return [replaced(each, by) for each in value]
    if isinstance(value, dict):
        if not value:
            return value
        kept = {key: replaced(each, by) for key, each in value.items()}
        return kept if any(kept[key] is not value[key] for key in value) else value
    return value


@cache
def _parts(kind: type) -> tuple[str, ...]:
    """Return the names of what a node of a class has, none for values and for JSON documents."""
    if not is_dataclass(kind) or issubclass(kind, nodes.Json):
        return ()
    return tuple(each.name for each in fields(kind))


_services: dict[str, Service] = {}
_lock = threading.Lock()


def service_of(alias: str, settings: Mapping[str, Any]) -> Service:
    """Return the service of *alias*, made on first use: one for all threads of the process."""
    found = _services.get(alias)
    if found is None:
        with _lock:
            found = _services.get(alias)
            if found is None:
                found = _services[alias] = Service(alias, settings)
    return found


def forget(aliases: Sequence[str] | None = None) -> None:
    """Close the transports of *aliases*, or of all; the next call opens them anew."""
    with _lock:
        names = list(_services) if aliases is None else aliases
        closed = [_services.pop(name) for name in names if name in _services]
    for each in closed:
        each.transport.close()


def _timeout(alias: str, settings: Mapping[str, Any]) -> float:
    found = settings.get("TIMEOUT", TIMEOUT)
    if isinstance(found, bool) or not isinstance(found, int | float) or not found > 0:
        raise ImproperlyConfigured(
            f"DATABASES[{alias!r}]['TIMEOUT'] is in seconds, above 0, not {found!r}"
        )
    return float(found)


def _limits(alias: str, settings: Mapping[str, Any]) -> Limits:
    try:
        return Limits(**settings.get("LIMITS", {}))
    except (TypeError, ValueError) as error:
        raise ImproperlyConfigured(f"DATABASES[{alias!r}]['LIMITS']: {error}") from error


def _keys(alias: str, settings: Mapping[str, Any]) -> Keys:
    from django.conf import settings as project

    # The service of this very process has keys of its own.
    local = settings.get("TRANSPORT") == "local" and not settings.get("KEYS")
    given = getattr(project, "PGBACKEND_RPC", {}) if local else settings
    try:
        return Keys.from_settings({name: given.get(name) for name in ("KEYS", "KEY")})
    except ValueError as error:
        raise ImproperlyConfigured(f"DATABASES[{alias!r}]: {error}") from error


def _transport(alias: str, settings: Mapping[str, Any]) -> Callable[[], Transport]:
    """Return what makes the transport, once the other settings are known to be right."""
    name = settings.get("TRANSPORT") or ("celery" if settings.get("BROKER_URL") else None)
    if name is None:
        raise ImproperlyConfigured(
            f"DATABASES[{alias!r}] needs 'TRANSPORT': one of {', '.join(TRANSPORTS)}, or the dotted"
            " path of a class; or 'BROKER_URL' for celery"
        )
    if name in TRANSPORTS:
        module = import_module(f".transports.{name}", __package__)
        kind = getattr(module, f"{name.title()}Transport")
    elif "." in str(name):
        try:
            kind = import_string(name)
        except ImportError as error:
            raise ImproperlyConfigured(
                f"DATABASES[{alias!r}]['TRANSPORT'] cannot be imported: {error}"
            ) from error
    else:
        raise ImproperlyConfigured(
            f"DATABASES[{alias!r}]['TRANSPORT'] is {name!r}; it may be {', '.join(TRANSPORTS)}, or"
            " the dotted path of a class"
        )
    from_settings = getattr(kind, "from_settings", None)
    return kind if from_settings is None else lambda: from_settings(settings)
