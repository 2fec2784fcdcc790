"""Whether the databases answer: views for ``urls.py``, and what they ask.

    urlpatterns = [
        path("health/live", LiveView.as_view()),
        path("health/ready", ReadyView.as_view(within=2.0)),
    ]

The command ``dbhealth`` asks the same, and ends with an exit code.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextvars import Context
from dataclasses import asdict, dataclass
from time import monotonic
from typing import Any, ClassVar, Literal

from asgiref.sync import sync_to_async
from django.db import connections
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views import View

from .bridge.greenlets import run_bridged
from .session.clean import CleanSQL
from .wrapper.attributes import BackendWrapper
from .wrapper.dispatch import runs_bridged

__all__ = ["Health", "LiveView", "ReadyView", "check", "check_all"]

Role = Literal["primary", "replica"]

logger = logging.getLogger("pgbackend.health")

# The checks that have not ended in time and are being cancelled: the loop keeps no reference.
_late: set[asyncio.Task[bool]] = set()


@dataclass(frozen=True)
class Health:
    """The answer of one database."""

    alias: str
    # Whether it has answered in time, and has the role that it should.
    ok: bool
    # What is wrong, in words that tell nothing of the server; "" if nothing is.
    reason: str
    # What the server is; None if it has not answered.
    role: Role | None
    # How long the answer took, seconds.
    seconds: float


async def check(alias: str = "default", *, within: float = 2.0, role: Role | None = None) -> Health:
    """Borrow a connection of *alias* and ask the server what it is; never raise for its failure.

    *within* is for both together, in seconds: the answer comes no later, however long a statement
    takes to be cancelled. With *role* the server has to be that. The server's own words are logged.
    """
    began = monotonic()
    # Nothing of the request: no transaction, and none of its wrappers.
    task = asyncio.create_task(_is_replica(alias), context=Context())
    try:
        await asyncio.wait({task}, timeout=within)
    finally:
        if not task.done():
            _late.add(task)
            task.add_done_callback(_end)
            task.cancel()
    seconds = monotonic() - began
    found: Role | None = None
    if not task.done():
        reason = f"no answer within {within:g} s"
    elif task.cancelled() or (error := task.exception()) is not None:
        reason = "no connection" if task.cancelled() else f"no answer: {type(error).__name__}"
        logger.warning("the database %r: %s", alias, "cancelled" if task.cancelled() else error)
    else:
        found = "replica" if task.result() else "primary"
        reason = f"a {found}, not a {role}" if role not in (None, found) else ""
    return Health(alias, not reason, reason, found, round(seconds, 6))


async def check_all(
    aliases: Iterable[str] | None = None, *, within: float = 2.0, role: Role | None = None
) -> list[Health]:
    """Do what `check` does for each of *aliases* at once, by default for all of this backend."""
    if aliases is None:
        aliases = [name for name in connections if isinstance(connections[name], BackendWrapper)]
    checks = (check(alias, within=within, role=role) for alias in aliases)
    return list(await asyncio.gather(*checks))


async def _is_replica(alias: str) -> bool:
    if runs_bridged(alias):
        return await run_bridged(_ask, alias)
    # Another thread than the one that waits for the view: that one has to answer in time.
    return await sync_to_async(_ask_and_close, thread_sensitive=False)(alias)


def _ask(alias: str) -> bool:
    with connections[alias].cursor() as cursor:
        cursor.execute(CleanSQL("SELECT pg_catalog.pg_is_in_recovery()"))
        return bool(cursor.fetchone()[0])


def _ask_and_close(alias: str) -> bool:
    try:
        return _ask(alias)
    finally:
        connections[alias].close()


def _end(task: asyncio.Task[bool]) -> None:
    _late.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.info("a check that was late has failed: %s", error)


class _HealthView(View):
    http_method_names: ClassVar[list[str]] = ["get", "head", "options"]

    @classmethod
    def as_view(cls, **initkwargs: Any) -> Callable[..., Any]:
        """Return the view; with ``ATOMIC_REQUESTS`` too, no transaction is begun for it."""
        view: Any = super().as_view(**initkwargs)
        view._non_atomic_requests = set(connections.settings)
        return view  # type: ignore[no-any-return]  # Django is untyped

    def answer(self, data: dict[str, Any], status: int = 200) -> HttpResponse:
        """Return a response that nothing keeps."""
        return JsonResponse(data, status=status, headers={"Cache-Control": "no-store"})


class LiveView(_HealthView):
    """Answers as long as the process handles requests, and asks no database."""

    async def get(self, request: HttpRequest) -> HttpResponse:
        """Return status 200."""
        return self.answer({"status": "alive"})


class ReadyView(_HealthView):
    """Answers with status 200 if each database does, and with 503 otherwise.

    The arguments of ``as_view`` are those of `check_all`: *aliases*, *within* and *role*.
    """

    aliases: Iterable[str] | None = None
    within: float = 2.0
    role: Role | None = None

    async def get(self, request: HttpRequest) -> HttpResponse:
        """Return what each database has answered, by alias."""
        found = await check_all(self.aliases, within=self.within, role=self.role)
        databases = {each.alias: asdict(each) for each in found}
        for each in databases.values():
            del each["alias"]
        ready = all(each.ok for each in found)
        status = "ready" if ready else "not ready"
        return self.answer({"status": status, "databases": databases}, 200 if ready else 503)
