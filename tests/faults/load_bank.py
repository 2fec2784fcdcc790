"""The bank that the load test runs: accounts, transfers, and the ledger of what was promised.

Each transfer writes a row with a nonce of its own. The ledger notes what its task was told:
acknowledged, refused, rolled back, or in doubt. In the end it is compared with the rows.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from django.db import Error, OperationalError, connection, models, transaction
from django.db.models import F, Sum
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.urls import path

from pgbackend import BridgeError, CommitInDoubt, bridged
from pgbackend.transaction import pinned
from tests.faults.load_faults import befalls

ACCOUNTS = 50
BALANCE = 1000
TOTAL = ACCOUNTS * BALANCE

# How often a transfer is tried that others deadlock with.
ATTEMPTS = 50

# How long the two halves of a deadlock wait for each other, seconds.
_MEETING = 5.0

DEADLOCK = "40P01"


class Account(models.Model):
    balance = models.IntegerField()

    class Meta:
        app_label = "tests"
        managed = False
        db_table = "load_account"


class Transfer(models.Model):
    nonce = models.BigIntegerField(unique=True)
    amount = models.IntegerField()

    class Meta:
        app_label = "tests"
        managed = False
        db_table = "load_transfer"


class Refused(Exception):
    """The application's own error, raised when everything has been written."""


class BrokenInvariantError(AssertionError):
    """An operation saw what it must not see."""


@dataclass(slots=True)
class Entry:
    """One attempt at a transfer, and what its task knows of it."""

    nonce: int
    # "open", "acknowledged", "refused", "rolled back" or "in doubt".
    outcome: str = "open"
    # Whether the block was being left, as if all were well.
    leaving: bool = False
    # How often its hook of on_commit was called.
    hooks: int = 0

    def hook(self) -> None:
        self.hooks += 1

    async def awaited_hook(self) -> None:
        self.hooks += 1
        await asyncio.sleep(0)

    def failed(self, error: BaseException) -> None:
        """Note what *error*, which ended the attempt, says of it."""
        told = isinstance(error, Exception) and not isinstance(error, CommitInDoubt | BridgeError)
        self.outcome = "rolled back" if told or not self.leaving else "in doubt"


@dataclass
class Ledger:
    """The entries of a run."""

    entries: dict[int, Entry] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def open(self, number: int) -> Entry:
        nonce = number * 2 * ATTEMPTS
        while nonce in self.entries:
            nonce += 1
        return self.entries.setdefault(nonce, Entry(nonce))


# The ledger of the run, for views: one run at a time.
ledger = Ledger()


@dataclass(frozen=True)
class Move:
    """What a transfer moves, and how it ends."""

    number: int
    source: int
    target: int
    amount: int
    refuse: bool = False
    awaited: bool = False
    # Awaited between the locks of the two accounts, which are then not taken in order.
    meet: Callable[[], Awaitable[Any]] | None = None

    @classmethod
    def of(cls, number: int, rng: random.Random) -> Move:
        source, target = rng.sample(range(1, ACCOUNTS + 1), 2)
        refuse, awaited = rng.random() < 0.1, rng.random() < 0.5
        return cls(number, source, target, rng.randint(1, 50), refuse, awaited)

    def end(self, entry: Entry) -> None:
        """Do what every style does last in its block."""
        transaction.on_commit(entry.awaited_hook if self.awaited else entry.hook)
        if self.refuse:
            raise Refused
        entry.leaving = True


async def transfer(style: str, move: Move) -> None:
    """Move money, and again if the server chose this transaction to end a deadlock."""
    for _ in range(ATTEMPTS):
        entry = ledger.open(move.number)
        try:
            await STYLES[style](entry, move)
        except Refused as error:
            entry.failed(error)
            ledger.counts["refused"] += 1
            return
        except OperationalError as error:
            entry.failed(error)
            if getattr(error.__cause__, "sqlstate", None) != DEADLOCK:
                raise
            ledger.counts["deadlocks"] += 1
        except BaseException as error:
            entry.failed(error)
            raise
        else:
            entry.outcome = "acknowledged"
            return
    raise BrokenInvariantError(f"{ATTEMPTS} attempts at a transfer ended in deadlocks")


async def _flat(entry: Entry, move: Move) -> None:
    """Lock both accounts in order, compute in Python, save."""
    async with transaction.atomic():
        pks = sorted((move.source, move.target))
        locked = Account.objects.select_for_update().filter(pk__in=pks).order_by("pk")
        accounts = {account.pk: account async for account in locked}
        accounts[move.source].balance -= move.amount
        accounts[move.target].balance += move.amount
        for account in accounts.values():
            await account.asave(update_fields=["balance"])
        await Transfer.objects.acreate(nonce=entry.nonce, amount=move.amount)
        move.end(entry)


async def _nested(entry: Entry, move: Move) -> None:
    """In nested blocks, with one that is rolled back between them."""
    async with transaction.atomic():
        await Transfer.objects.acreate(nonce=entry.nonce, amount=move.amount)
        changes = {move.source: -move.amount, move.target: move.amount}
        for pk in sorted(changes):
            try:
                async with transaction.atomic():
                    await _change(pk, 1)
                    raise Refused
            except Refused:
                pass
            async with transaction.atomic():
                await _change(pk, changes[pk])
        move.end(entry)


async def _gathered(entry: Entry, move: Move) -> None:
    """By tasks that join the transaction."""

    async def change(pk: int, amount: int) -> None:
        async with transaction.atomic():
            await _change(pk, amount)

    async with transaction.atomic():
        pks = sorted((move.source, move.target))
        # The locks first: in which order the tasks get their turn is nobody's promise.
        async for _ in Account.objects.select_for_update().filter(pk__in=pks).order_by("pk"):
            pass
        await asyncio.gather(
            change(move.source, -move.amount),
            change(move.target, move.amount),
            Transfer.objects.acreate(nonce=entry.nonce, amount=move.amount),
        )
        move.end(entry)


@bridged
def _synchronous(entry: Entry, move: Move) -> None:
    """By Django's synchronous functions, in the bridge."""
    with transaction.atomic():
        pks = sorted((move.source, move.target))
        accounts = Account.objects.select_for_update().order_by("pk").in_bulk(pks)
        accounts[move.source].balance -= move.amount
        accounts[move.target].balance += move.amount
        for account in accounts.values():
            account.save(update_fields=["balance"])
        Transfer.objects.create(nonce=entry.nonce, amount=move.amount)
        move.end(entry)


async def _crossed(entry: Entry, move: Move) -> None:
    """Lock the accounts in the order of the move, and meet the opposite one in between."""
    async with transaction.atomic():
        await _change(move.source, -move.amount)
        if move.meet is not None:
            await move.meet()
        await _change(move.target, move.amount)
        await Transfer.objects.acreate(nonce=entry.nonce, amount=move.amount)
        move.end(entry)


async def _change(pk: int, amount: int) -> None:
    await Account.objects.filter(pk=pk).aupdate(balance=F("balance") + amount)


STYLES: dict[str, Callable[[Entry, Move], Awaitable[None]]] = {
    "flat": _flat,
    "nested": _nested,
    "gathered": _gathered,
    "synchronous": _synchronous,
    "crossed": _crossed,
}


async def deadlock(number: int, rng: random.Random) -> None:
    """Run two transfers that each lock what the other wants next."""
    both = Move.of(number, rng)
    first, second = asyncio.Event(), asyncio.Event()

    def meeting(mine: asyncio.Event, theirs: asyncio.Event) -> Callable[[], Awaitable[None]]:
        async def meet() -> None:
            mine.set()
            try:
                async with asyncio.timeout(_MEETING):
                    await theirs.wait()
            except TimeoutError:
                # The other one has failed, or found no connection.
                pass

        return meet

    there = Move(number, both.source, both.target, both.amount, meet=meeting(first, second))
    back = Move(number, both.target, both.source, both.amount, meet=meeting(second, first))
    ended = await asyncio.gather(
        transfer("crossed", there), transfer("crossed", back), return_exceptions=True
    )
    for error in ended:
        if error is not None:
            raise error


async def read(number: int, rng: random.Random) -> None:
    """Ask for one account, some, or all: one statement sees one state of the bank."""
    kind = rng.random()
    if kind < 0.5:
        pk = rng.randint(1, ACCOUNTS)
        account = await Account.objects.aget(pk=pk)
        check(account.pk == pk, f"account {pk} came as {account.pk}")
    elif kind < 0.7:
        pks = rng.sample(range(1, ACCOUNTS + 1), 3)
        found = await asyncio.gather(*(Account.objects.aget(pk=pk) for pk in pks))
        check([each.pk for each in found] == pks, "gathered accounts came as others")
    elif kind < 0.85:
        check(await _total() == TOTAL, "the sum of all balances was not the bank's")
    else:
        check(await read_synchronously() == TOTAL, "the sum of all balances was not the bank's")


async def _total() -> Any:
    return (await Account.objects.aaggregate(total=Sum("balance")))["total"]


@bridged
def read_synchronously() -> int:
    """Return the sum of all balances, by the synchronous ORM in the bridge."""
    return sum(account.balance for account in Account.objects.all())


async def stream(number: int, rng: random.Random) -> None:
    """Read all accounts through a server-side cursor."""
    total = 0
    async for account in Account.objects.aiterator(chunk_size=rng.choice([10, 40, 200])):
        total += account.balance
    check(total == TOTAL, "the sum of the streamed balances was not the bank's")


async def abandon(number: int, rng: random.Random) -> None:
    """Read some accounts through a server-side cursor and drop it."""
    left = rng.randint(1, ACCOUNTS - 1)
    async for _ in Account.objects.aiterator(chunk_size=10):
        left -= 1
        if not left:
            break


@bridged
async def session(number: int, rng: random.Random) -> None:
    """Make something of each kind in the session, after looking for what others left there."""
    async with pinned():
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT coalesce(current_setting('load.number', true), ''),"
                " (SELECT count(*) FROM pg_locks"
                " WHERE locktype = 'advisory' AND pid = pg_backend_pid()),"
                " to_regclass('pg_temp.load_scratch'),"
                " (SELECT count(*) FROM pg_listening_channels())"
            )
            found = cursor.fetchone()
            check(found == ("", 0, None, 0), f"a session began with {found}")
            cursor.execute("SELECT set_config('load.number', %s, false)", [str(number)])
            cursor.execute("SELECT pg_advisory_lock(%s)", [number])
            cursor.execute("CREATE TEMPORARY TABLE load_scratch (n int)")
            cursor.execute("LISTEN load")
        await Account.objects.aget(pk=rng.randint(1, ACCOUNTS))
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_setting('load.number')")
            check(cursor.fetchone() == (str(number),), "a session has another's setting")


@bridged
def time_out(number: int, rng: random.Random) -> None:
    """Let the server end a statement, and use the same transaction's connection on."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL statement_timeout = '5ms'")
        try:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("SELECT pg_sleep(10)")
        except OperationalError as error:
            if getattr(error.__cause__, "sqlstate", None) != "57014":
                raise
        else:
            check(False, "statement_timeout ended nothing")
        Account.objects.filter(pk=1).exists()


def check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise BrokenInvariantError(otherwise)


def named(error: Error) -> str:
    """Return the names of an error of Django's and of psycopg's that caused it."""
    return f"{type(error).__name__} ({type(error.__cause__).__name__})"


# Requests


def answering(view: Callable[..., Awaitable[HttpResponse]]) -> Callable[..., Any]:
    """Return *view*, which answers by 503 when its connection is lost."""

    @functools.wraps(view)
    async def answer(*args: Any, **kwargs: Any) -> HttpResponse:
        try:
            return await view(*args, **kwargs)
        except Error as error:
            return HttpResponse(named(error), status=503)

    return answer


@answering
async def transfer_view(request: HttpRequest, number: int, style: str, seed: int) -> HttpResponse:
    await befalls(transfer(style, Move.of(number, random.Random(seed))))
    return HttpResponse("done")


@answering
async def total_view(request: HttpRequest) -> HttpResponse:
    async def total() -> Any:
        # Synchronous access, without a bridge of its own.
        first = Account.objects.get(pk=1)
        others = await Account.objects.exclude(pk=1).aaggregate(total=Sum("balance"))
        return first.balance + others["total"]

    # Two statements: the two may see the bank before and after a transfer.
    return HttpResponse(await befalls(total()))


async def stream_view(request: HttpRequest) -> StreamingHttpResponse:
    async def body() -> AsyncIterator[str]:
        accounts = Account.objects.order_by("pk").aiterator(chunk_size=10)

        async def following() -> Account | None:
            return await anext(accounts, None)

        while (account := await befalls(following())) is not None:
            yield f"{account.balance}\n"

    return StreamingHttpResponse(body())


urlpatterns = [
    path("transfer/<int:number>/<str:style>/<int:seed>/", transfer_view),
    path("total/", total_view),
    path("stream/", stream_view),
]
